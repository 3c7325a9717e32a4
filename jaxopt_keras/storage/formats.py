"""Storage formats of slots: the choice of a format, and the conversions to it and back."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.rule import Slot
from jaxopt_keras.storage.blockwise import Blocks, Code, dequantize, quantize
from jaxopt_keras.storage.rounding import stochastic

SMALL = 4096  # elements: smaller slots stay float32, which is exact and costs little memory (as in bitsandbytes)
SHORT = 16  # last axis: with fewer elements for each scale, the scales would cost more than the codes save


class Choice(NamedTuple):
    """A format, or None to keep the slot's own dtype; and why it differs from the requested format."""

    format: str | None
    reason: str = ""


def choose_format(x: Any, name: str | None, slot: Slot, lazy: bool = False) -> Choice:
    """Choose the format of a fresh slot.

    Args:
        x: the slot, or its shape and dtype.
        name: the requested format, one of `options.FORMATS`, or None.
        slot: the rule's declaration of the slot.
        lazy: whether single rows are updated (`sparse="lazy"`).
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
    """Convert a fresh slot to `format`; None keeps its dtype."""
    if format is None:
        return x
    if format in ("float32", "bfloat16"):
        return x.astype(format)
    x = jax.lax.optimization_barrier(x)  # otherwise XLA folds the codes of zeros at compile time, which takes seconds
    return quantize(x, Code(format, signed=not slot.nonnegative))


def dequantize_slot(x: Any, dtype: Any) -> Any:
    """Convert a stored slot to the real dtype of arithmetic in `dtype`; integer slots stay as they are."""
    real = jnp.finfo(dtype).dtype
    if isinstance(x, Blocks):
        return dequantize(x).astype(real)
    return x.astype(real) if jnp.issubdtype(x.dtype, jnp.floating) else x


def quantize_like(x: Any, like: Any, seed: Callable[[], Array] | None = None) -> Any:
    """Convert `x` to the format of `like`, rounding stochastically by `seed()`, or to nearest without it."""
    if isinstance(like, Blocks):
        return quantize(x, like.code, seed and seed())
    if seed is not None and jnp.issubdtype(like.dtype, jnp.floating) and jnp.finfo(like.dtype).bits < 32:
        return stochastic(x.astype(jnp.float32), like.dtype, seed())
    return x.astype(like.dtype)
