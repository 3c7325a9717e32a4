"""Gradient accumulation where gradients are missing, and the count of updates at its end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk

G = {"w": jnp.ones(3), "b": jnp.ones(2)}
NONE = {"w": jnp.ones(3), "b": None}
KERNELS = {
    "sgd": lambda **options: jk.sgd(1.0, momentum=0.5, **options),
    "adamw": lambda **options: jk.adamw(0.1, **options),
    "loss_scaled": lambda **options: jk.loss_scaled(jk.adam(0.1, **options), 1.0),
    "guard": lambda **options: jk.adam(0.1, skip_nonfinite=True, **options),
    "ema": lambda **options: jk.adam(0.1, use_ema=True, **options),
    "partition": lambda **options: jk.partition({"b": jk.adam(0.1, **options)}, default=jk.sgd(0.1, **options)),
    "clipped": lambda **options: jk.adam(0.1, global_clipnorm=1.0, **options),
}


def zeros():
    return {"w": jnp.zeros(3), "b": jnp.zeros(2)}


def stepped(kernel, grads, params=None):
    params = zeros() if params is None else params
    state = kernel.init(params)
    for g in grads:
        params, state = kernel.step(params, state, g)
    return params, state


def updated(kernel, grads):
    params = zeros()
    state = kernel.init(params)
    for g in grads:
        deltas, state = kernel.update(g, state, params)
        params = jax.tree.map(jnp.add, params, deltas)
    return params, state


@pytest.mark.parametrize("run", [stepped, updated])
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("window", [[G, NONE], [NONE, G], [NONE, G, NONE]], ids=["last", "first", "both"])
def test_missing_gradients_are_zeros_in_the_mean(window, name, run):
    """A parameter counts as updated if one call of the window had a gradient, whichever call."""
    kernel = KERNELS[name](gradient_accumulation_steps=len(window))
    filled = [g | {"b": jnp.zeros(2) if g["b"] is None else g["b"]} for g in window]
    found, expected = run(kernel, window * 2), stepped(kernel, filled * 2)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, expected)
    assert np.all(np.asarray(found[0]["b"]) < 0)


@pytest.mark.parametrize("name", KERNELS)
def test_without_any_gradient_nothing_moves(name):
    kernel = KERNELS[name](gradient_accumulation_steps=2)
    params = {"w": jnp.ones(3), "b": jnp.ones(2)}
    initial = kernel.init(params)
    before = {n: np.array(tree["b"]) for n, tree in initial.slots.items() if isinstance(tree["b"], jax.Array)}
    new, state = stepped(kernel, [NONE] * 4, params)
    assert np.array_equal(new["b"], [1, 1])
    for slot, value in before.items():
        np.testing.assert_allclose(state.slots[slot]["b"], value, rtol=1e-6)


def test_the_stateful_face_keeps_what_was_accumulated():
    w, b = jk.Variable(np.zeros(3), name="w"), jk.Variable(np.zeros(2), name="b")
    optimizer = jk.SGD(1.0, gradient_accumulation_steps=2)
    optimizer.apply([jnp.ones(3), jnp.ones(2)], [w, b])
    with pytest.warns(UserWarning, match="Gradients do not exist for variables"):
        optimizer.apply([jnp.ones(3), None], [w, b])
    assert b.numpy().tolist() == [-0.5, -0.5] and w.numpy().tolist() == [-1, -1, -1]


LAST = 2**31 - 1


@pytest.mark.parametrize("rate", [0.1, jk.schedules.InverseTimeDecay(0.1, 10, 0.5)])
@pytest.mark.parametrize("name", ["adam", "sgd", "nadam", "schedule_free_adamw", "adafactor", "lamb", "muon"])
def test_the_count_stays_at_the_greatest_integer(name, rate):
    kernel, params = getattr(jk, name)(rate), {"w": jnp.ones((2, 3))}
    state = kernel.init(params)._replace(count=jnp.int32(LAST - 1))
    for _ in range(3):
        params, state = kernel.step(params, state, {"w": jnp.ones((2, 3))})
    assert int(state.count) == LAST and np.all(np.isfinite(params["w"])) and np.all(params["w"] <= 1)


def test_iterations_stay_at_the_greatest_integer():
    optimizer, w = jk.Adam(0.1), jk.Variable(np.ones(3))
    optimizer.build([w])
    optimizer.iterations = LAST
    optimizer.apply([jnp.ones(3)], [w])
    assert int(optimizer.iterations) == LAST and np.all(w.numpy() < 1)
