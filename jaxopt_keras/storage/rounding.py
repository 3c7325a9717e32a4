"""Stochastic rounding: to one of the two neighbours, with probabilities that make the mean exact.

Rounding to nearest loses every update smaller than half a unit in the last place; stochastic rounding keeps it on
average (Zamirai et al. 2020, arXiv:2010.06192).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.places import platform
from jaxopt_keras.storage import hash_rng


def stochastic(x: Array, dtype: Any, seed: Array) -> Array:
    """Round float32 `x` to the 16-bit or 8-bit float `dtype`.

    Numbers that `dtype` represents exactly do not change, nor do NaN and infinity. A finite number never becomes
    infinite: it is clipped to the greatest finite one.
    """
    return _bfloat16(x, seed) if dtype == jnp.bfloat16 else _other(x, dtype, seed)


def _bfloat16(x: Array, seed: Array) -> Array:
    """Add 16 random bits to the lower half of the float32: they carry into the upper half, the bfloat16.

    The carry has the right probability. All arithmetic is on integers, since XLA flushes subnormal floats to zero.
    """
    pattern = jax.lax.bitcast_convert_type(x, jnp.uint32)
    sign, size = pattern & jnp.uint32(0x80000000), pattern & jnp.uint32(0x7FFFFFFF)
    infinity = jnp.uint32(0x7F800000)
    rounded = jnp.minimum(size + (hash_rng.bits(x.shape, seed) >> 16), infinity - 1)
    # The quiet bit keeps a NaN one without its lower half.
    quiet = jnp.where(size > infinity, size | jnp.uint32(0x00400000), size)
    whole = sign | jnp.where(size < infinity, rounded, quiet)
    if platform() == "tpu":  # there bfloat16 has no subnormals, and XLA fuses only this conversion with the rest
        return jax.lax.bitcast_convert_type(whole & jnp.uint32(0xFFFF0000), jnp.float32).astype(jnp.bfloat16)
    return jax.lax.bitcast_convert_type((whole >> 16).astype(jnp.uint16), jnp.bfloat16)


def _other(x: Array, dtype: Any, seed: Array) -> Array:
    """Round by the distance between neighbours, which depends on the power of two below `x`, or on the subnormals."""
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
