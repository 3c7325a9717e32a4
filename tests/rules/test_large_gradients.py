"""Finite gradients whose squares overflow: every rule steps as it does in float64, and goes on learning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras.language.numerics import norm, rms, squarable
from jaxopt_keras.optimizers import FUNCTIONS, RULES

KERNELS = [(name, v) for name, rule in zip(FUNCTIONS, RULES.values(), strict=True) for v in rule.variants]
HUGE = [1e20, -3e25, 1e37]  # 1 / 1e38 is subnormal, and flushed to zero


def trained(kernel, params, grads):
    state = kernel.init(params)
    for g in grads:
        params, state = kernel.step(params, state, g, donate=False)
    return np.asarray(params, np.float64), state


@pytest.mark.parametrize("engine", ["auto", "xla"])
@pytest.mark.parametrize("huge", HUGE)
@pytest.mark.parametrize("function, variant", KERNELS)
def test_steps_are_those_of_float64(function, variant, huge, engine, x64):
    kernel = FUNCTIONS[function](variant=variant, engine=engine)
    usual = np.full((2, 3), 0.5)
    spike = usual.copy()
    spike[0, 0] = huge
    expected, _ = trained(kernel, jnp.ones((2, 3)), [usual, spike, usual, usual])
    narrow = [jnp.asarray(g, jnp.float32) for g in (usual, spike, usual, usual)]
    found, state = trained(kernel, jnp.ones((2, 3), jnp.float32), narrow)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state))
    np.testing.assert_allclose(found - 1, expected - 1, rtol=2e-2, atol=1e-7)


@pytest.mark.parametrize("huge", HUGE)
@pytest.mark.parametrize("state_dtype", ["int8", "int4", "float8", "bfloat16"])
def test_quantized_slots_stay_finite(state_dtype, huge):
    kernel, g = jk.adamw(state_dtype=state_dtype), jnp.full(8192, 0.5)
    params, state = trained(kernel, jnp.ones(8192), [g, g.at[3].set(huge), g, g])
    assert np.all(np.isfinite(params)) and np.all(np.abs(params - 1) < 0.1)
    assert all(np.all(np.isfinite(np.asarray(x, np.float32))) for x in jax.tree.leaves(state))


CLIPS = {
    "clipnorm": lambda g: g / np.linalg.norm(g),
    "global_clipnorm": lambda g: g / np.linalg.norm(g),
    "clipvalue": lambda g: np.clip(g, -1, 1),
}


@pytest.mark.parametrize("wrap", [lambda k: k, lambda k: jk.loss_scaled(k, 1.0), lambda k: jk.partition({"w": k})])
@pytest.mark.parametrize("huge", HUGE)
@pytest.mark.parametrize("clip", CLIPS)
def test_clips_of_huge_gradients(clip, huge, wrap):
    g = np.array([huge, -huge / 4, 1.0], np.float32)
    kernel, params = wrap(jk.sgd(1.0, skip_nonfinite=True, **{clip: 1.0})), {"w": jnp.zeros(3)}
    new, state = kernel.step(params, kernel.init(params), {"w": jnp.asarray(g)})
    np.testing.assert_allclose(new["w"], -CLIPS[clip](g.astype(np.float64)), rtol=1e-6)
    assert int(state.scalars["skipped"]) == 0


@pytest.mark.parametrize("clip", CLIPS)
def test_a_limit_of_zero_is_no_limit(clip):
    kernel = jk.sgd(1.0, inject_hyperparams=True, **{clip: 1.0})
    for g in (jnp.array([3.0, 4.0]), jnp.zeros(2)):
        state = kernel.replaced(kernel.init(jnp.zeros(2)), **{clip: 0.0})
        assert np.array_equal(kernel.step(jnp.zeros(2), state, g)[0], -g)


@pytest.mark.parametrize("dtype", ["float32", "complex64", "float64", "complex128"])
def test_norms_do_not_overflow(dtype, x64):
    greatest = float(np.finfo(dtype).max) / 64
    for x in ([3.0, 4.0], [3e-3, 4e-3], [greatest * 0.6, greatest * 0.8], [1.0] * 7 + [greatest], []):
        x = np.array(x, dtype) * (1j if "complex" in dtype else 1)
        expected = np.sqrt(np.sum(np.abs(x.astype(np.clongdouble)) ** 2))
        np.testing.assert_allclose(norm(jnp.asarray(x)), float(expected), rtol=1e-6)
        np.testing.assert_allclose(rms(jnp.asarray(x)), float(expected) / max(x.size, 1) ** 0.5, rtol=1e-6)
    for bad in (np.inf, np.nan):
        assert not np.isfinite(norm(jnp.array([1.0, bad], dtype)))


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_squarable_hides_nothing(dtype):
    x = jnp.array([1.0, -2.0, 0.0, 1e19, 1e38, -1e38, np.inf, -np.inf, np.nan], dtype)
    limited = np.asarray(squarable(x))
    assert np.array_equal(limited[:4], x[:4]) and np.all(np.isfinite(np.abs(limited[:6]) ** 2))
    assert np.array_equal(limited[6:], x[6:], equal_nan=True)


def test_the_norm_has_a_finite_derivative():
    assert np.allclose(jax.grad(norm)(jnp.array([3.0, 4.0])), [0.6, 0.8])
