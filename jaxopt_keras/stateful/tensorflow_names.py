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

    def scatter_add(self, sparse_delta: Any, use_locking: Any = None, name: Any = None) -> Any:
        """Add rows, `IndexedSlices`, in place. Duplicate rows are summed."""
        return self.assign(jnp.asarray(self.value).at[sparse_delta.indices].add(sparse_delta.values))

    def scatter_sub(self, sparse_delta: Any, use_locking: Any = None, name: Any = None) -> Any:
        """Subtract rows, `IndexedSlices`, in place. Duplicate rows are summed."""
        return self.assign(jnp.asarray(self.value).at[sparse_delta.indices].add(-sparse_delta.values))

    def scatter_update(self, sparse_delta: Any, use_locking: Any = None, name: Any = None) -> Any:
        """Replace rows by those of `IndexedSlices`."""
        return self.assign(jnp.asarray(self.value).at[sparse_delta.indices].set(sparse_delta.values))
