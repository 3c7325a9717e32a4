"""Every optimizer of optax is here under its name, or docs/from_optax.md says what is in its place: run here."""

import functools
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import jaxopt_keras as jk

PAGE = Path(__file__).parents[2] / "docs" / "from_optax.md"
PARAMS = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.array([0.1, -0.3])}
HERE = jk.optimizers.FUNCTIONS | jk.optimizers.MORE_FUNCTIONS


def factories():
    """The public functions of optax that return optimizers."""
    from_aliases = {
        n: f.func if isinstance(f, functools.partial) else f
        for n, f in vars(optax).items()
        if callable(f) and not isinstance(f, type)
    }
    found = {n for n, f in from_aliases.items() if getattr(f, "__module__", "") == "optax._src.alias"}
    return found | {n for n, f in vars(contrib).items() if inspect.isfunction(f) and not n.startswith("scale_by")}


@pytest.mark.parametrize("name", sorted(factories()))
def test_each_is_here_or_on_the_page(name):
    table = PAGE.read_text().partition("## Optimizers")[2].partition("## Names of the state")[0]
    assert name in HERE or f"{name}(" in table or f"`{name}`" in table, f"docs/from_optax.md: say what `{name}` is here"


def gradient(p):
    return jax.tree.map(lambda x: 2 * x + jnp.sin(3 * x), p)


def followed(tx, params, steps=8):
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


SAME = {"epsilon": 1e-8, "variant": "optax"}
PAIRS = {
    "adamaxw": (lambda: optax.adamaxw(0.1, weight_decay=0.1), lambda: jk.adamax(0.1, weight_decay=0.1, **SAME)),
    "nadamw": (lambda: optax.nadamw(0.1, weight_decay=0.1), lambda: jk.nadam(0.1, weight_decay=0.1, **SAME)),
    "amsgrad": (lambda: optax.amsgrad(0.1), lambda: jk.adam(0.1, amsgrad=True, **SAME)),
    "sign_sgd": (lambda: optax.sign_sgd(0.1), lambda: jk.signum(0.1, momentum=0.0, variant="optax")),
    "optimistic_adam": (
        lambda: optax.optimistic_adam(0.1, 0.3),
        lambda: jk.optimistic_adam(1.0, alpha=0.1, beta=0.3),
    ),
    "optimistic_adam_v2": (
        lambda: optax.optimistic_adam_v2(0.1, alpha=0.7, beta=0.3, nesterov=False),
        lambda: jk.optimistic_adam(0.1, alpha=0.7, beta=0.3, nesterov=False),
    ),
    "schedule_free": (
        lambda: contrib.schedule_free(optax.adam(0.1), 0.1, 0.8),
        lambda: jk.schedule_free(jk.adam(0.1, **SAME), momentum=0.8),
    ),
    "schedule_free_sgd": (
        lambda: contrib.schedule_free_sgd(0.1, b1=0.8),
        lambda: jk.schedule_free(jk.sgd(0.1), momentum=0.8),
    ),
    "mechanize": (
        lambda: contrib.mechanize(optax.adam(0.1)),
        lambda: jk.Kernel.from_optax(contrib.mechanize(jk.adam(0.1, **SAME))),
    ),
    "normalize": (
        lambda: optax.chain(contrib.normalize(), optax.sgd(0.1)),
        lambda: optax.chain(contrib.normalize(), jk.sgd(0.1)),
    ),
}


@pytest.mark.filterwarnings("ignore:`optimistic_adam` is deprecated")
@pytest.mark.usefixtures("x64", "jax_defaults")
@pytest.mark.parametrize("name", PAIRS)
def test_what_is_in_its_place(name):
    theirs, ours = (followed(make(), jax.tree.map(lambda p: p.astype(float), PARAMS)) for make in PAIRS[name])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), ours[0], theirs[0])
    if name.startswith("schedule_free"):
        evaluated = jk.schedule_free(jk.sgd(0.1), momentum=0.8).averaged(ours[0], ours[1])
        wanted = contrib.schedule_free_eval_params(theirs[1], theirs[0])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), evaluated, wanted)


@pytest.mark.usefixtures("jax_defaults")
def test_noise_has_the_variance_of_optax():
    zeros = {"w": jnp.zeros(4096)}
    for tx in (optax.noisy_sgd(1.0, 0.04, 0.5, key=0), jk.noisy(jk.sgd(1.0), eta=0.04, gamma=0.5)):
        state = tx.init(zeros)
        for t in (1, 2):
            updates, state = tx.update(zeros, state, zeros)
            np.testing.assert_allclose(jnp.std(updates["w"]), 0.2 / t**0.25, rtol=0.05)


@pytest.mark.usefixtures("x64", "jax_defaults")
def test_parts_of_complex_numbers():
    params = {"w": jnp.array([1.0 + 2.0j, -0.5j])}
    ours, theirs = (
        followed(contrib.split_real_and_imaginary(make), params)[0] for make in (jk.adam(0.1, **SAME), optax.adam(0.1))
    )
    np.testing.assert_allclose(ours["w"], theirs["w"], rtol=1e-9)


def test_gradients_for_each_example():
    grads, found = jax.tree.map(lambda p: jnp.stack([p, -2 * p, p]), PARAMS), []
    for one in (jk.sgd(0.1), optax.sgd(0.1)):
        tx = optax.chain(contrib.differentially_private_aggregate(1.0, 0.1, 0), one)
        found.append(tx.update(grads, tx.init(PARAMS), PARAMS)[0])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), *found)
