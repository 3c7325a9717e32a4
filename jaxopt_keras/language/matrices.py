"""How an array is seen as matrices: which of its axes are rows, which are columns, and which count the matrices."""

import math
import re
from typing import NamedTuple

from jax import Array

WORDS = ("batch", "rows", "columns")
PLAIN = "rows columns"
_AXIS = re.compile(r"\(([^()]*)\)|(\S+)")


class View(NamedTuple):
    """An array as `number` matrices of `rows` x `columns` elements. Each axis, or part of one, has one of `WORDS`."""

    shape: tuple[int, ...]  # of the array
    sizes: tuple[int, ...]  # of the axes after those of `shape` are split
    words: tuple[str, ...]  # of the same axes
    origin: tuple[int, ...]  # the axis of `shape` of which each is a part

    def axes(self, word: str) -> tuple[int, ...]:
        """Return the axes with this word, after the split."""
        return tuple(i for i, own in enumerate(self.words) if own == word)

    def size(self, word: str) -> int:
        return math.prod(self.sizes[i] for i in self.axes(word))

    @property
    def number(self) -> int:
        """How many matrices there are."""
        return self.size("batch")

    @property
    def matrix(self) -> tuple[int, int]:
        """The shape of one matrix."""
        return self.size("rows"), self.size("columns")

    @property
    def _order(self) -> tuple[int, ...]:
        return tuple(i for word in WORDS for i in self.axes(word))

    def matrices(self, x: Array) -> Array:
        """Return the array as a stack of shape (number, rows, columns)."""
        return x.reshape(self.sizes).transpose(self._order).reshape(self.number, *self.matrix)

    def restored(self, stack: Array) -> Array:
        """Return the array of a stack: the inverse of `matrices`."""
        back = sorted(range(len(self.sizes)), key=lambda i: self._order[i])
        return stack.reshape([self.sizes[i] for i in self._order]).transpose(back).reshape(self.shape)

    def without(self, word: str) -> "View":
        """Return the view of an array that lacks the axes with this word: a stack of rows, or of columns."""
        kept = [i for i, own in enumerate(self.words) if own != word]
        lacking = self.lacking(word)
        axes = [axis for axis in range(len(self.shape)) if axis not in lacking]
        shape = tuple(math.prod(self.sizes[i] for i in kept if self.origin[i] == axis) for axis in axes)
        origin = tuple(axes.index(self.origin[i]) for i in kept)
        return View(shape, tuple(self.sizes[i] for i in kept), tuple(self.words[i] for i in kept), origin)

    def lacking(self, word: str) -> tuple[int, ...]:
        """Return the axes of the array that have this word, whole."""
        others = {self.origin[i] for i, own in enumerate(self.words) if own != word}
        return tuple(axis for axis in range(len(self.shape)) if axis not in others)

    def splits(self, word: str) -> bool:
        """Whether an axis of the array has this word only in part."""
        return any(self.origin[i] not in self.lacking(word) for i in self.axes(word))

    def __str__(self) -> str:
        rows, columns = self.matrix
        return f"{rows} x {columns}" if self.number == 1 else f"{self.number} of {rows} x {columns}"


def view(text: str, shape: tuple[int, ...], path: str = "", needed: tuple[str, ...] = ("rows", "columns")) -> View:
    """Return the view of an array that `text` describes: a word for each axis.

    "rows" and "columns" are the inputs and the outputs of a layer; "batch" counts matrices. Several axes with one word
    are taken as one, in their order. `batch...` stands for any number of axes. An axis in parentheses is split, in
    row-major order; all its parts but one need a size.

    >>> print(view("batch... rows columns", (12, 768, 3072)))  # layers of a scan, experts
    12 of 768 x 3072
    >>> print(view("rows batch columns", (768, 12, 64)))  # the heads of an attention
    12 of 768 x 64
    >>> print(view("rows (batch=36 columns)", (768, 2304)))  # the same, of queries, keys and values in one array
    36 of 768 x 64
    >>> print(view("rows... columns", (3, 3, 64, 128)))  # a convolution
    576 x 128

    Args:
        needed: the words of which each must be there.

    Raises:
        ValueError: if `text` is not such a description, or does not fit `shape`.
    """

    def refuse(why: str) -> ValueError:
        where = f" of `{path}`" if path else ""
        return ValueError(
            f"A view of an array must have a word for each axis, of {', '.join(WORDS)}: 'batch... rows columns', or "
            f"'rows (batch=12 columns)' to split an axis. Received: {text!r} for the shape {shape}{where}: {why}"
        )

    entries = _spread([m[1] or m[2] for m in _AXIS.finditer(text)], len(shape))
    if len(entries) != len(shape):
        raise refuse(f"it has {len(entries)} axes")
    sizes, words, origin = list[int](), list[str](), list[int]()
    for axis, (entry, size) in enumerate(zip(entries, shape, strict=True)):
        parts = [part.partition("=")[::2] for part in entry.split()]
        if unknown := [word for word, _ in parts if word not in WORDS]:
            raise refuse(f"{unknown[0]!r} is none of the words")
        known = [int(n) if n.isdecimal() else None for _, n in parts]
        if len(parts) > 1 or known != [None]:
            whole = math.prod(n for n in known if n)
            if 0 in known or known.count(None) > 1 or (size % whole if None in known else size != whole):
                raise refuse(f"an axis of {size} is not split by {entry!r}")
            known = [size // whole if n is None else n for n in known]
        sizes += [size if n is None else n for n in known]
        words += [word for word, _ in parts]
        origin += [axis] * len(parts)
    if missing := [word for word in needed if word not in words]:
        raise refuse(f"it has no {missing[0]}")
    return View(shape, tuple(sizes), tuple(words), tuple(origin))


def _spread(entries: list[str], count: int) -> list[str]:
    """Replace the entry `word...` by as many as make `count` entries."""
    found = next((i for i, entry in enumerate(entries) if entry.endswith("...")), None)
    if found is None:
        return entries
    word = entries[found].removesuffix("...")
    return entries[:found] + [word] * (count - len(entries) + 1) + entries[found + 1 :]
