"""The names that TensorFlow's variables and shapes have in addition to Keras's and NumPy's."""

import math
from typing import Any, Self

import jax.numpy as jnp


class Shape(tuple[int, ...]):
    """A shape: a tuple with the names of `tf.TensorShape`, which equals lists too."""

    __slots__ = ()
    __hash__ = tuple.__hash__

    def __eq__(self, other: object) -> bool:
        return super().__eq__(tuple(other) if isinstance(other, list) else other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    @property
    def rank(self) -> int:
        return len(self)

    ndims = rank

    def as_list(self) -> list[int]:
        """Return the shape as a list."""
        return list(self)

    def num_elements(self) -> int:
        """Return the number of elements of an array of this shape."""
        return math.prod(self)


class TensorFlowNames:
    """Methods of `tf.Variable` for anything with `value`, `name` and `assign`."""

    name: str
    value: Any
    assign: Any

    def read_value(self) -> Any:
        """Return the current array."""
        return self.value

    def ref(self) -> Self:
        """Return a key for a dict: the variable itself, which is hashable."""
        return self

    def deref(self) -> Self:
        """Return the variable of a key that `ref` returned."""
        return self

    @property
    def op(self) -> Self:
        """The operation that makes the variable: it has its `name`."""
        return self

    @property
    def handle(self) -> Self:
        """The resource of the variable, for `tf.raw_ops`."""
        return self

    def get_shape(self) -> Shape:
        """Return the shape."""
        return Shape(self.value.shape)

    def _scatter(self, method: str, indices: Any, values: Any) -> Any:
        """Assign the array after a method of `at`."""
        return self.assign(getattr(jnp.asarray(self.value).at[indices], method)(values))

    def _scatter_rows(self, method: str, rows: Any) -> Any:
        """Assign the array after a method of `at` with `IndexedSlices`."""
        return self._scatter(method, jnp.asarray(rows.indices), rows.values)

    def scatter_add(self, sparse_delta: Any, use_locking: Any = None, name: Any = None) -> Any:
        """Add rows, `IndexedSlices`, in place. Duplicate rows are summed."""
        return self._scatter_rows("add", sparse_delta)

    def scatter_sub(self, sparse_delta: Any, use_locking: Any = None, name: Any = None) -> Any:
        """Subtract rows, `IndexedSlices`, in place. Duplicate rows are summed."""
        return self._scatter_rows("subtract", sparse_delta)

    def scatter_mul(self, sparse_delta: Any, use_locking: Any = None, name: Any = None) -> Any:
        """Multiply rows by those of `IndexedSlices`."""
        return self._scatter_rows("mul", sparse_delta)

    def scatter_div(self, sparse_delta: Any, use_locking: Any = None, name: Any = None) -> Any:
        """Divide rows by those of `IndexedSlices`."""
        return self._scatter_rows("divide", sparse_delta)

    def scatter_min(self, sparse_delta: Any, use_locking: Any = None, name: Any = None) -> Any:
        """Replace rows by the minimum of them and those of `IndexedSlices`."""
        return self._scatter_rows("min", sparse_delta)

    def scatter_max(self, sparse_delta: Any, use_locking: Any = None, name: Any = None) -> Any:
        """Replace rows by the maximum of them and those of `IndexedSlices`."""
        return self._scatter_rows("max", sparse_delta)

    def scatter_update(self, sparse_delta: Any, use_locking: Any = None, name: Any = None) -> Any:
        """Replace rows by those of `IndexedSlices`."""
        return self._scatter_rows("set", sparse_delta)

    def scatter_nd_add(self, indices: Any, updates: Any, name: Any = None) -> Any:
        """Add `updates` at places, whose coordinates are the last axis of `indices`."""
        return self._scatter("add", _coordinates(indices), updates)

    def scatter_nd_sub(self, indices: Any, updates: Any, name: Any = None) -> Any:
        """Subtract `updates` at places, whose coordinates are the last axis of `indices`."""
        return self._scatter("subtract", _coordinates(indices), updates)

    def scatter_nd_update(self, indices: Any, updates: Any, name: Any = None) -> Any:
        """Replace what is at places, whose coordinates are the last axis of `indices`, by `updates`."""
        return self._scatter("set", _coordinates(indices), updates)


def _coordinates(indices: Any) -> tuple[Any, ...]:
    return tuple(jnp.moveaxis(jnp.asarray(indices), -1, 0))
