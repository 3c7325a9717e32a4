"""Master weights: the float32 value of a 16-bit parameter, kept as a slot.

`float32` keeps the whole value. `bf16+16` and `bf16+8` keep 16 or 8 bits of its difference from the parameter
(FlashOptim 2026, arXiv:2602.23349). The parameter is the master rounded to nearest, so they differ by at most half a
unit in the parameter's last place. Subtracted as bit patterns, in units of float32's last place, that is a 16-bit
integer.
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
    """Whether a parameter of `dtype` gets a master weight: parameters of 16 bits do.

    Raises:
        TypeError: if `kind` is a correction of bfloat16 and `dtype` is another one.
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
    """Split the float32 `master` into the nearest parameter of `dtype` and the slot.

    A slot of eight bits is rounded stochastically by `seed()`, or to nearest without it.
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
    # A tie that is rounded down is 32768 away, which the clip shortens by one unit in float32's last place.
    return p, jnp.clip(distance, -32768, 32767).astype(jnp.int16)


def join_master(p: Array, slot: Array, kind: str) -> Array:
    """Join a parameter and its slot to the float32 master.

    Where a float32 slot does not round to `p`, the parameter was written since the last step: `p` is the master.
    """
    if kind not in BITS:
        bits = lambda x: jax.lax.bitcast_convert_type(x.astype(p.dtype), jnp.uint16)  # XLA may skip float rounding
        return jnp.where(bits(slot) == bits(p), slot, p.astype(slot.dtype))
    wide, distance = p.astype(jnp.float32), slot.astype(jnp.int32) << (16 - BITS[kind])
    master = jax.lax.bitcast_convert_type(_pattern(wide) + distance, jnp.float32)
    return jnp.where(jnp.isfinite(master) & jnp.isfinite(wide), master, wide)  # below 0 and above infinity is NaN


def _pattern(x: Array) -> Array:
    return jax.lax.bitcast_convert_type(x, jnp.int32)
