"""A step in the words that a TPU's compiler needs computes the same, here on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras.language.places import Places, platform, platform_of

NARROW = (300, 8)  # a TPU lays it column by column


def draw(seed, dtype, shape=NARROW):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def run(kernel, params, steps, where):
    """Three steps, traced for a platform."""
    with Places(where).traced():
        state = kernel.program.init(params, kernel.hyper())
        step = jax.jit(kernel.program.step)
        for grads in steps:
            params, state = step(params, state, grads, kernel.hyper())
    return params, state


def bad(g):
    return g.at[3, 2].set(jnp.nan)


CASES = {
    "guard": (jk.adamw(0.1, skip_nonfinite=True), "float32", bad),
    "spikes": (jk.adamw(0.1, skip_spikes=5.0), "float32", lambda g: g * 1e6),
    "accumulation": (jk.adamw(0.1, gradient_accumulation_steps=2), "float32", lambda g: g),
    "both": (jk.adamw(0.1, gradient_accumulation_steps=2, skip_nonfinite=True), "float32", bad),
    "loss scale": (jk.loss_scaled(jk.adamw(0.1)), "float16", bad),
    "guard, bfloat16": (jk.adamw(0.1, skip_nonfinite=True), "bfloat16", bad),
    "scale and guard": (jk.loss_scaled(jk.adamw(0.1, skip_nonfinite=True)), "float16", bad),
    "scale of bf16+8": (jk.loss_scaled(jk.adamw(0.1, master_weights="bf16+8")), "bfloat16", bad),
    "scale and accumulation": (jk.loss_scaled(jk.adamw(0.1, gradient_accumulation_steps=2)), "float16", bad),
    "scale of groups": (jk.loss_scaled(jk.partition({"w": jk.sgd(0.1)}, jk.muon(0.1))), "float16", bad),
    "scale and spikes": (jk.loss_scaled(jk.adamw(0.1, skip_spikes=5.0)), "float16", lambda g: g * 1e3),
    "factor and guard": (jk.adamw(0.1, loss_scale_factor=8.0, skip_nonfinite=True), "bfloat16", bad),
    "guarded groups": (
        jk.partition({"w": jk.adamw(0.1, skip_nonfinite=True)}, jk.sgd(0.1, skip_nonfinite=True)),
        "bfloat16",
        bad,
    ),
    "overflow": (jk.sgd(6e4, skip_nonfinite=True), "float16", lambda g: g * 3e4),
    "overflow, accumulation": (
        jk.sgd(6e4, skip_nonfinite=True, gradient_accumulation_steps=2),
        "float16",
        lambda g: g * 3e4,
    ),
    "bf16+16": (jk.adamw(0.1, master_weights="bf16+16"), "bfloat16", lambda g: g),
    "bf16+8": (jk.adamw(0.1, master_weights="bf16+8"), "bfloat16", lambda g: g),
    "stochastic": (jk.adamw(0.1, rounding="stochastic"), "bfloat16", lambda g: g),
    "bfloat16 slots": (jk.adamw(0.1, state_dtype="bfloat16"), "float32", lambda g: g),
    "overwriting": (jk.adamw(0.1, use_ema=True, ema_overwrite_frequency=2), "float32", lambda g: g),
}
# fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_same_step(name):
    kernel, dtype, changed = CASES[name]
    shapes = {"w": NARROW, "b": (8,), "scale": ()}
    params = {key: draw(0, dtype, shape) for key, shape in shapes.items()}
    steps = [{key: draw(i, dtype, shape) for key, shape in shapes.items()} for i in (1, 2, 3)]
    steps[1]["w"] = changed(steps[1]["w"])
    here, there = (run(kernel, params, steps, where) for where in ("cpu", "tpu"))
    assert jax.tree.structure(here) == jax.tree.structure(there)
    for x, y in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True):
        assert x.dtype == y.dtype
        rtol = 2e-6 if x.dtype == jnp.float32 else 1e-2
        np.testing.assert_allclose(np.asarray(x, np.float32), np.asarray(y, np.float32), rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("shape", [(300, 8), (300, 2, 4), (8, 300), (300,)], ids=str)
def test_the_same_rows(shape):
    kernel, params = jk.adam(0.1, sparse="lazy"), {"table": draw(0, "float32", shape)}
    indices = jnp.array([7, 2, 7, -1])
    steps = [{"table": jk.IndexedSlices(draw(i, "float32", (4, *shape[1:])), indices, shape)} for i in (1, 2)]
    here, there = (run(kernel, params, steps, where) for where in ("cpu", "tpu"))
    for x, y in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-6)
    changed = np.any(np.asarray(there[0]["table"] != params["table"]).reshape(shape[0], -1), 1)
    assert np.flatnonzero(changed).tolist() == [2, 7]  # -1 is no row


def test_the_platform_is_that_of_the_arrays():
    assert platform() == platform_of(jnp.ones(3)) == "cpu"
    with Places("tpu").traced():
        assert platform() == "tpu" and platform_of(jnp.ones(3)) == "cpu"
        assert platform_of(jax.ShapeDtypeStruct((3,), jnp.float32)) == "tpu"
        assert Places.of({"w": jnp.ones(3)}) == Places("cpu")
    assert platform() == "cpu"
