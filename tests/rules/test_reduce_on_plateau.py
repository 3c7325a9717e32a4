"""A rate that falls on a plateau is optax's, step by step, and passes through both faces, files and accumulation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_keras as jk

LOSSES = [
    4.0,
    3.0,
    3.1,
    2.999999,
    3.5,
    2.0,
    2.1,
    2.2,
    2.3,
    1.0,
    1.5,
    1.6,
    float("nan"),
    1.2,
    1.1,
    1.0,
    1.0,
    0.5,
    0.6,
    0.7,
]
PARAMS = {"w": np.array([1.0, -2.0, 0.5]), "b": np.array(0.25)}
GRADS = {"w": np.array([0.5, 1.0, -1.0]), "b": np.array(2.0)}
SETTINGS = [
    {"patience": 2, "factor": 0.5},
    {"patience": 1, "factor": 0.5, "cooldown": 2, "rtol": 0.1},
    {"patience": 3, "factor": 0.25, "atol": 0.5, "rtol": 0.0},
    {"patience": 1, "factor": 0.5, "accumulation_size": 3},
    {"patience": 1, "factor": 0.1, "min_scale": 0.05},
]
BASES = [
    (lambda: jk.sgd(0.1), lambda: optax.sgd(0.1)),
    (
        lambda: jk.adamw(0.1, weight_decay=0.1, variant="optax", epsilon=1e-8),
        lambda: optax.adamw(0.1, weight_decay=0.1),
    ),
    (lambda: jk.prodigy(1.0, d0=0.01, variant="optax"), lambda: optax.contrib.prodigy(1.0, estim_lr0=0.01)),
]


def assert_equal(ours, theirs):
    for name, p in theirs.items():
        np.testing.assert_allclose(ours[name], p, rtol=0, atol=1e-7)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("base", [0, 1])
def test_it_is_that_of_optax(base, settings):
    ours, theirs = (make() for make in BASES[base])
    kernel = jk.reduce_on_plateau(ours, **settings)
    chain = optax.chain(theirs, optax.contrib.reduce_on_plateau(**settings))
    params = expected = jax.tree.map(jnp.asarray, PARAMS)
    state, other = kernel.init(params), chain.init(expected)
    scales: list[float] = []
    for loss in LOSSES:
        params, state = kernel.step(params, state, GRADS, value=loss, donate=False)
        with jax.numpy_dtype_promotion("standard"):  # optax multiplies a count by a mean
            updates, other = chain.update(GRADS, other, expected, value=loss)
        expected = optax.apply_updates(expected, updates)
        assert_equal(params, expected)
        scales.append(float(state.scalars["scale"]))
        np.testing.assert_allclose(scales[-1], float(other[1].scale), rtol=1e-6)
    assert scales[-1] < 1 and scales[0] == 1


@pytest.mark.usefixtures("x64")
def test_around_a_rule_with_sums_its_rate_is_the_scaled_one():
    """Prodigy's estimate uses the rate, so that a scale of the rate is not one of the step."""
    kernel, params = jk.reduce_on_plateau(BASES[2][0](), patience=1, factor=0.5), jax.tree.map(jnp.asarray, PARAMS)
    state = kernel.init(params)
    expected, scale, other = params, 1.0, None
    for i, loss in enumerate([2.0, 1.0, 1.0, 1.0]):
        params, state = kernel.step(params, state, GRADS, value=loss, donate=False)
        scale *= 0.5 if i > 1 else 1.0
        one = jk.prodigy(scale, d0=0.01, variant="optax")
        expected, other = one.step(expected, one.init(expected) if other is None else other, GRADS, donate=False)
        assert_equal(params, expected)
    assert float(state.scalars["scale"]) == 0.25


def test_the_stateful_face_and_a_file(tmp_path):
    v = jk.Variable(PARAMS["w"], name="w")
    optimizer = jk.ReduceOnPlateau(jk.Adam(0.1), patience=2, factor=0.5)
    kernel, params = jk.reduce_on_plateau(jk.adam(0.1), patience=2, factor=0.5), {"w": PARAMS["w"]}
    state = kernel.init(params)
    for loss in LOSSES[:6]:
        optimizer.apply_gradients([(GRADS["w"], v)], loss=loss)
        params, state = kernel.step(params, state, {"w": GRADS["w"]}, value=loss, donate=False)
    jk.checkpoint.save(tmp_path / "state.safetensors", state)
    state = jk.checkpoint.load(tmp_path / "state.safetensors", kernel, params)
    for loss in LOSSES[6:12]:
        optimizer.apply_gradients([(GRADS["w"], v)], loss=loss)
        params, state = kernel.step(params, state, {"w": GRADS["w"]}, value=loss, donate=False)
    assert float(state.scalars["scale"]) == 0.125
    np.testing.assert_allclose(v.value, params["w"], rtol=1e-6)


def test_a_window_counts_once():
    """Under accumulation the loss is the mean of the window."""
    kernel = jk.reduce_on_plateau(jk.sgd(0.5, gradient_accumulation_steps=2), patience=1, factor=0.5)
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = kernel.init(params)
    for loss in (1.0, 3.0, 3.0, 1.0, 0.5, 0.5):  # means: 2, 2, 0.5
        params, state = kernel.step(params, state, GRADS, value=loss, donate=False)
    assert float(state.scalars["scale"]) == 0.5 and float(state.scalars["best"]) == 0.5


@pytest.mark.parametrize("name, value", [("factor", 1.5), ("patience", 0), ("accumulation_size", 0), ("cooldown", -1)])
def test_bad_numbers_are_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be in"):
        jk.reduce_on_plateau(jk.adam(), **{name: value})


def test_without_a_loss_nothing_changes():
    kernel = jk.reduce_on_plateau(jk.adam())
    with pytest.raises(ValueError, match="needs the loss"):
        kernel.step(PARAMS, kernel.init(PARAMS), GRADS)
