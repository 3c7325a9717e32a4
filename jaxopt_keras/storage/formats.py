"""Which format a slot has in memory, and the way into it and out of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.rule import Slot
from jaxopt_keras.storage.blockwise import Blocks, Code, dequantize, quantize
from jaxopt_keras.storage.rounding import stochastic

SMALL = 4096  # elements: fewer stay float32, which costs nothing and is exact (the rule of bitsandbytes)
SHORT = 16  # last axis: with fewer elements to a scale, the scales would cost more than the codes save


def requested_format(state_dtype: Any, slot: str) -> str | None:
    """What the user asked for this slot."""
    return dict(state_dtype).get(slot) if isinstance(state_dtype, tuple) else state_dtype


class Choice(NamedTuple):
    """A format, or None for the dtype that the slot has; and why it is not what was asked for."""

    format: str | None
    reason: str = ""


def choose_format(x: Any, name: str | None, slot: Slot, lazy: bool = False) -> Choice:
    """The format of a fresh slot `x` (or its shape and dtype), for which one of `options.FORMATS` was asked, or None.

    Args:
        lazy: whether single rows are updated.
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
    return Choice(name) if x.shape[-1] >= SHORT else Choice("bfloat16", f"last axis shorter than {SHORT}")


def quantize_slot(x: Array, format: str | None, slot: Slot) -> Any:
    """A fresh slot in its format."""
    if format is None:
        return x
    if format in ("float32", "bfloat16"):
        return x.astype(format)
    x = jax.lax.optimization_barrier(x)  # XLA would take seconds to compute the codes of zeros when it compiles
    return quantize(x, Code(format, signed=not slot.nonnegative))


def dequantize_slot(x: Any, dtype: Any) -> Any:
    """A stored slot as the rule sees it, where the arithmetic has `dtype`."""
    real = jnp.finfo(dtype).dtype
    if isinstance(x, Blocks):
        return dequantize(x).astype(real)
    return x.astype(real) if jnp.issubdtype(x.dtype, jnp.floating) else x


def quantize_like(x: Any, like: Any, seed: Callable[[], Array] | None = None) -> Any:
    """`x` in the format of `like`; rounded stochastically by `seed()`, or to nearest without it."""
    if isinstance(like, Blocks):
        return quantize(x, like.code, seed and seed())
    if seed is not None and jnp.issubdtype(like.dtype, jnp.floating) and jnp.finfo(like.dtype).bits < 32:
        return stochastic(x.astype(jnp.float32), like.dtype, seed())
    return x.astype(like.dtype)
