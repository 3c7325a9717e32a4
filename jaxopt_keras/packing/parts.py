"""How a packed tree is stored in its buffers: the part of each array, and the gaps between them."""

import functools
import math
import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

Pieces = Sequence[tuple[int, bool]]  # of a buffer, in order: the elements of each, and whether it is a gap


class Form(NamedTuple):
    """Which arrays are in buffers, and how they are stored in them."""

    largest: int = 2**62  # elements of an array
    most: int = 2**62  # bytes of a buffer; there are several of a dtype
    unit: int = 1  # bytes: an array starts at a multiple of them, after a gap

    def elements(self, x: Any) -> int:
        """The most elements of an array of the dtype of `x`."""
        return min(self.largest, self.most // x.dtype.itemsize)

    def place(self, end: int, x: Any) -> int | None:
        """Where an array like `x` starts in a buffer that is full up to `end`, in elements; None: in another one."""
        step = max(self.unit // x.dtype.itemsize, 1)
        start = -(-end // step) * step
        return start if (start + x.size) * x.dtype.itemsize <= self.most else None


class Part(NamedTuple):
    """One array of a packed tree."""

    path: str
    buffer: str  # the name of its buffer; "" for a loose array, which is in no buffer
    shape: tuple[int, ...]
    offset: int  # the number of elements before it in its buffer, those of gaps too

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def read(self, buffer: Array) -> Array:
        """Return the array from its buffer."""
        return _sliced(buffer, self.offset, self.shape)

    def write(self, buffer: Array, value: Array, donate: bool = False) -> Array:
        """Return the buffer with `value` in the place of the array. `donate`: reuse the memory of `buffer`."""
        return (_written_in_place if donate else _written)(buffer, value, self.offset)


@functools.partial(jax.jit, static_argnums=2)
def _sliced(buffer: Array, offset: Any, shape: tuple[int, ...]) -> Array:
    return lax.dynamic_slice(buffer, (offset,), (math.prod(shape),)).reshape(shape)


def _written(buffer: Array, value: Array, offset: Any) -> Array:
    return lax.dynamic_update_slice(buffer, jnp.ravel(value), (offset,))


_written_in_place = jax.jit(_written, donate_argnums=0)


@dataclass(frozen=True, eq=False)
class Arrangement:
    """The layout of a packed tree. Interned by `arrangement_of`, so that `jit` compares layouts by identity."""

    parts: tuple[Part, ...]
    treedef: Any

    def __reduce__(self) -> Any:
        return arrangement_of, (self.parts, self.treedef)

    @functools.cached_property
    def pieces(self) -> dict[str, tuple[tuple[int, bool], ...]]:
        """The pieces of each buffer, in order: the elements of each, and whether it is a gap before an array."""
        found, ends = dict[str, list[tuple[int, bool]]](), Counter[str]()
        for part in self.parts:
            if part.buffer:
                gap = part.offset - ends[part.buffer]
                found.setdefault(part.buffer, []).extend([*([(gap, True)] if gap else []), (part.size, False)])
                ends[part.buffer] = part.offset + part.size
        return {name: tuple(some) for name, some in found.items()}


def arrangement_of(parts: tuple[Part, ...], treedef: Any) -> Arrangement:
    """Return the one `Arrangement` of these parts."""
    return _arrangements.setdefault((parts, treedef), Arrangement(parts, treedef))


_arrangements: weakref.WeakValueDictionary[Any, Arrangement] = weakref.WeakValueDictionary()


def any_gap(pieces: Pieces) -> bool:
    return any(is_gap for _, is_gap in pieces)


def filled(arrays: Sequence[Any], pieces: Pieces, gaps: Iterable[Any] | None = None) -> list[Any]:
    """Return the pieces of a buffer.

    Args:
        gaps: what is between the arrays. None: zeros.
    """
    inside, between = iter(arrays), iter(gaps or ())
    zeros = lambda n: np.zeros(n, arrays[0].dtype)
    return [(zeros(n) if gaps is None else next(between)) if is_gap else next(inside) for n, is_gap in pieces]
