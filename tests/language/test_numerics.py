"""The small helpers of the arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxopt_keras.language.numerics import complemented, compute_dtype, ema, norm, rms, square


@given(beta=st.floats(0, 1, allow_subnormal=False), t=st.integers(1, 100_000))
def test_a_complemented_decay_is_exact_to_float32(beta, t):
    decay = complemented(beta, jnp.float32)
    tiny = float(np.finfo(np.float32).tiny)
    np.testing.assert_allclose(float(1 - decay), 1 - beta, rtol=1e-7, atol=tiny)
    log = t * np.log(beta) if beta > 0 else -np.inf
    if not 0 < beta < tiny:  # float32 has no such number
        np.testing.assert_allclose(float(decay.log()) * t, log, rtol=3e-7, atol=tiny)
    # The exponent is rounded to float32 as well, so the power's relative error grows with its size.
    slack = 3e-7 * (1 + min(abs(log), 100))
    np.testing.assert_allclose(float((decay ** jnp.float32(t)).value), np.exp(log), rtol=slack, atol=tiny)
    np.testing.assert_allclose(float(1 - decay ** jnp.float32(t)), -np.expm1(log), rtol=5e-7, atol=tiny)


def test_a_complemented_decay_acts_as_a_number():
    beta = complemented(0.9, jnp.float32)
    x = jnp.float32(2)
    np.testing.assert_allclose([beta * x, x * beta, x / beta, 2 - beta], [1.8, 1.8, 2 / 0.9, 1.1], rtol=1e-6)
    assert beta.astype(jnp.float16).value.dtype == jnp.float16


def test_the_average_of_a_constant_does_not_drift():
    g = jnp.asarray(np.random.default_rng(0).normal(size=100), jnp.float32)
    for beta in (0.9, 0.95, 0.999, 0.9999):
        beta = complemented(beta, jnp.float32)
        last, _ = jax.lax.scan(lambda v, _, beta=beta: (ema(v, g, beta), None), g, None, length=10_000)
        np.testing.assert_array_equal(last, g)


def test_the_average_nears_a_constant_alike_from_both_sides():
    """It stops where a step is less than half of a last place; a decay that is off in float32 would move the middle."""
    g, beta = jnp.linspace(1, 2, 1000, dtype=jnp.float32), complemented(0.999, jnp.float32)
    starts = jnp.stack([0.5 * g, 1.5 * g])
    last, _ = jax.lax.scan(lambda v, _: (ema(v, g[None], beta), None), starts, None, length=20_000)
    middle = np.mean(np.asarray(last, np.float64) / np.asarray(g, np.float64))
    assert abs(middle - 1) < 1e-6


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("bfloat16", "float32"), ("float16", "float32"), ("float8_e4m3fn", "float32"), ("float32", "float32"),
     ("float64", "float64"), ("complex64", "complex64"), ("complex128", "complex128")],
)  # fmt: skip
def test_arithmetic_has_32_bits_at_least(dtype, expected):
    assert compute_dtype(dtype) == expected


def test_norms_of_complex_and_empty_arrays():
    z = jnp.array([3 + 4j, 0])
    np.testing.assert_allclose([norm(z), rms(z)], [5, 5 / np.sqrt(2)], rtol=1e-6)
    assert square(z).dtype == jnp.float32
    empty = jnp.zeros((0, 2))
    assert norm(empty) == rms(empty) == 0
