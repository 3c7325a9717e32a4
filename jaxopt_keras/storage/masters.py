"""Master weights: what a bfloat16 parameter lacks of its float32 self, kept as a slot.

`float32` keeps all of it; `bf16+16` and `bf16+8` keep the difference from the parameter, 16 or 8 bits of it (FlashOptim
2026, arXiv:2602.23349). The parameter is the master rounded to nearest, so the difference is at most half of its last
place; as patterns of bits, whose distance counts in last places of float32, that is a 16-bit integer.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.storage import hash_rng

MASTER = "master"
BITS = {"bf16+16": 16, "bf16+8": 8}


def has_master(kind: str | None, dtype: Any) -> bool:
    """Whether a parameter of `dtype` gets a master: those of 16 bits do.

    Raises:
        TypeError: for a correction of a dtype that is no upper half of float32.
    """
    if kind is None or jnp.finfo(dtype).bits >= 32:
        return False
    if kind in BITS and dtype != jnp.bfloat16:
        raise TypeError(
            f'`master_weights="{kind}"` corrects bfloat16 parameters. Received: one of dtype {dtype}. Use '
            '`master_weights="float32"`.'
        )
    return True


def split_master(master: Array, kind: str, dtype: Any, seed: Callable[[], Array] | None = None) -> tuple[Array, Array]:
    """The parameter of `dtype` that is nearest to the float32 `master`, and the slot.

    Eight bits are rounded to nearest, or stochastically by `seed()`.
    """
    p = master.astype(dtype)
    if kind not in BITS:
        return p, master
    distance = _pattern(master) - _pattern(p.astype(jnp.float32))
    distance = jnp.where(jnp.isfinite(master) & jnp.isfinite(p), distance, 0)
    if BITS[kind] == 8:
        part = 128 if seed is None else (hash_rng.bits(master.shape, seed()) >> 24).astype(jnp.int32)
        distance = (distance + part) >> 8  # rounded to multiples of 256
        return p, jnp.clip(distance, -128, 127).astype(jnp.int8)
    # A tie that is rounded down is 32768 away: it is kept one last place of float32 nearer.
    return p, jnp.clip(distance, -32768, 32767).astype(jnp.int16)


def join_master(p: Array, slot: Array, kind: str) -> Array:
    """The float32 master. Where it does not round to `p`, the parameter was written since, and counts."""
    if kind not in BITS:
        bits = lambda x: jax.lax.bitcast_convert_type(x.astype(p.dtype), jnp.uint16)  # XLA may skip rounding of floats
        return jnp.where(bits(slot) == bits(p), slot, p.astype(slot.dtype))
    wide, distance = p.astype(jnp.float32), slot.astype(jnp.int32) << (16 - BITS[kind])
    master = jax.lax.bitcast_convert_type(_pattern(wide) + distance, jnp.float32)
    return jnp.where(jnp.isfinite(master) & jnp.isfinite(wide), master, wide)  # below 0 and above infinity is NaN


def _pattern(x: Array) -> Array:
    return jax.lax.bitcast_convert_type(x, jnp.int32)
