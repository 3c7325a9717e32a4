"""Storage formats of slots: the choice of a format, and the conversions to it and back."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.places import Place
from jaxopt_keras.language.rule import Slot
from jaxopt_keras.storage.blockwise import Blocks, Code, dequantize, quantize, zeros
from jaxopt_keras.storage.rounding import stochastic
from jaxopt_keras.storage.tiles import SHORT, Tiles, tiles_for

SMALL = 4096  # elements: smaller slots stay float32, which is exact and costs little memory (as in bitsandbytes)


class Choice(NamedTuple):
    """A format, or None to keep the slot's own dtype; why it differs from the requested format; and its blocks."""

    format: str | None
    reason: str = ""
    tiles: Tiles | None = None


def choose_format(x: Any, name: str | None, slot: Slot, place: Place, lazy: bool = False) -> Choice:
    """Choose the format of a fresh slot.

    Args:
        x: the slot, or its shape and dtype.
        name: the requested format, one of `options.FORMATS`, or None.
        slot: the rule's declaration of the slot.
        place: where it is.
        lazy: whether single rows are updated (`sparse="lazy"`): they must stay rows.

    Raises:
        ValueError: if blocks would straddle shards.
    """
    if name is None:
        return Choice(None)
    if slot.exact:
        return Choice(None, "exact")
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return Choice(None, "complex")
    if name in ("float32", "bfloat16"):
        return Choice(name)
    if x.size < SMALL:
        return Choice(None, f"fewer than {SMALL} elements")
    if lazy and len(x.shape) < 2:
        return Choice(None, "its elements are its rows")
    greatest = Code(name, True).block
    tiles = tiles_for(x.shape, greatest, place._replace(platform="") if lazy else place)
    n = x.shape[tiles.axis if tiles else -1]
    if n < SHORT:
        return Choice("bfloat16", f"{'last ' if tiles is None or tiles.axis == -1 else ''}axis shorter than {SHORT}")
    return Choice(name, tiles=tiles)


def quantize_slot(x: Array, choice: Choice, slot: Slot, is_zero: bool) -> Any:
    """Convert a fresh slot to the format of its choice."""
    if choice.format is None:
        return x
    if choice.format in ("float32", "bfloat16"):
        return x.astype(choice.format)
    code = Code(choice.format, signed=not slot.nonnegative)
    if is_zero:
        return zeros(x, code, choice.tiles)
    x = jax.lax.optimization_barrier(x)  # otherwise XLA folds the codes of zeros at compile time, which takes seconds
    return quantize(x, code, tiles=choice.tiles)


def dequantize_slot(x: Any, dtype: Any) -> Any:
    """Convert a stored slot to the real dtype of arithmetic in `dtype`; integer slots stay as they are."""
    real = jnp.finfo(dtype).dtype
    if isinstance(x, Blocks):
        return dequantize(x).astype(real)
    return x.astype(real) if jnp.issubdtype(x.dtype, jnp.floating) else x


def quantize_like(x: Any, like: Any, seed: Callable[[], Array] | None = None) -> Any:
    """Convert `x` to the format of `like`, rounding stochastically by `seed()`, or to nearest without it."""
    if isinstance(like, Blocks):
        return quantize(x, like.code, seed and seed(), like.tiles)
    if seed is not None and jnp.issubdtype(like.dtype, jnp.floating) and jnp.finfo(like.dtype).bits < 32:
        return stochastic(x.astype(jnp.float32), like.dtype, seed())
    return x.astype(like.dtype)
