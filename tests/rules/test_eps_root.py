"""`eps_root`, a constant under the root of the second moment: the steps of optax, or of NumPy where it has none."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_keras as jk

EPS_ROOT = 1e-3  # not small beside the second moments
PARAMS = {"w": np.linspace(-1, 1, 6).reshape(2, 3), "b": np.zeros(3)}
PEERS = {
    "adam": (jk.adam, optax.adam, {}),
    "amsgrad": (lambda *a, **o: jk.adam(*a, amsgrad=True, **o), optax.amsgrad, {}),
    "adamw": (jk.adamw, optax.adamw, {"weight_decay": 0.01}),
    "nadam": (jk.nadam, optax.nadam, {}),
    "lamb": (jk.lamb, optax.lamb, {}),
}


def grads():
    rng = np.random.default_rng(0)
    return [{n: rng.normal(size=x.shape) * 0.1**i for n, x in PARAMS.items()} for i in range(4)]


def arrays(tree):
    return {n: jnp.asarray(x) for n, x in tree.items()}


@pytest.mark.parametrize("name", PEERS)
def test_the_steps_are_optax_own(name, jax_defaults, x64):
    ours, theirs, others = PEERS[name]
    kernel = ours(0.1, variant="optax", epsilon=1e-8, eps_root=EPS_ROOT, **others)
    tx = theirs(0.1, eps=1e-8, eps_root=EPS_ROOT, **others)
    params, peers = arrays(PARAMS), arrays(PARAMS)
    state, peer = kernel.init(params), tx.init(peers)
    for g in map(arrays, grads()):
        params, state = kernel.step(params, state, g)
        updates, peer = tx.update(g, peer, peers)
        peers = optax.apply_updates(peers, updates)
    for n in PARAMS:
        np.testing.assert_allclose(params[n], peers[n], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("function", [jk.adam, jk.nadam, jk.lamb, jk.schedule_free_adamw])
def test_the_first_step_of_the_other_variants(function, x64):
    """All bias corrections make the first averages the gradient and its square."""
    g, p = np.array([0.5, -0.01, 0.0]), np.array([1.0, 2.0, -2.0])
    kernel = function(0.1, epsilon=0.0, eps_root=EPS_ROOT)
    new, _ = kernel.step(jnp.asarray(p), kernel.init(jnp.asarray(p)), jnp.asarray(g))
    u = g / np.sqrt(g**2 + EPS_ROOT)
    if function is jk.nadam:  # its first step is longer, by a factor that is the same for all elements
        u = u * (p - np.asarray(new))[0] / (0.1 * u[0])
    if function is jk.lamb:
        u = u * np.linalg.norm(p) / np.linalg.norm(u)
    np.testing.assert_allclose(new, p - 0.1 * u, rtol=1e-9)


@pytest.mark.parametrize("cls", [jk.Adam, jk.AdamW, jk.Nadam, jk.Lamb, jk.ScheduleFreeAdamW])
def test_the_stateful_face(cls):
    optimizer = cls(0.1, eps_root=EPS_ROOT)
    assert optimizer.get_config()["eps_root"] == EPS_ROOT and "eps_root" not in cls().get_config()
    again = cls.from_config(optimizer.get_config())
    assert again.eps_root == optimizer.eps_root == EPS_ROOT
    with pytest.raises(ValueError, match="eps_root"):
        cls(eps_root=-1.0)
