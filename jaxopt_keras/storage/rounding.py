"""Stochastic rounding: to one of the two neighbours, with probabilities that make the mean right.

Rounding to nearest loses every update that is smaller than half of the last place; here they survive on average
(Zamirai et al. 2020, arXiv:2010.06192).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.storage import hash_rng


def stochastic(x: Array, dtype: Any, seed: Array) -> Array:
    """Float32 `x` in the 16-bit or 8-bit float `dtype`. What the dtype holds exactly stays; NaN and infinity stay.

    A finite number never becomes infinite: beyond the greatest it is the greatest.
    """
    return _bfloat16(x, seed) if dtype == jnp.bfloat16 else _other(x, dtype, seed)


def _bfloat16(x: Array, seed: Array) -> Array:
    """Bfloat16 is the upper half of a float32: 16 random bits added to the lower half carry with the right chance.

    In integers throughout: XLA flushes subnormal floats to zero.
    """
    pattern = jax.lax.bitcast_convert_type(x, jnp.uint32)
    sign, size = pattern & jnp.uint32(0x80000000), pattern & jnp.uint32(0x7FFFFFFF)
    infinity = jnp.uint32(0x7F800000)
    rounded = jnp.minimum(size + (hash_rng.bits(x.shape, seed) >> 16), infinity - 1)
    quiet = jnp.where(size > infinity, size | jnp.uint32(0x00400000), size)  # NaN: not all of it in the lower half
    upper = (sign | jnp.where(size < infinity, rounded, quiet)) >> 16
    return jax.lax.bitcast_convert_type(upper.astype(jnp.uint16), jnp.bfloat16)


def _other(x: Array, dtype: Any, seed: Array) -> Array:
    """By the distance of the neighbours, which is a power of two below `x` and the same for all subnormals."""
    info = jnp.finfo(dtype)
    greatest = float(info.max)
    y = jnp.clip(x, -greatest, greatest)
    power = jax.lax.bitcast_convert_type(
        jax.lax.bitcast_convert_type(y, jnp.uint32) & jnp.uint32(0x7F800000), jnp.float32
    )
    distance = jnp.maximum(power, float(info.smallest_normal)) * 2.0**-info.nmant
    below = jnp.floor(y / distance)
    up = hash_rng.uniform(x.shape, seed) < y / distance - below
    rounded = jnp.minimum((below + up.astype(jnp.float32)) * distance, greatest)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(dtype)
