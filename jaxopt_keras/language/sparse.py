"""Sparse gradients: rows of a parameter, as an embedding has them."""

import sys
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class IndexedSlices:
    """Rows of a gradient: `dense[indices[i]] += values[i]`; an index may occur more than once.

    Args:
        values: `(n, *dense_shape[1:])`, the rows.
        indices: `(n,)` integers in `[0, dense_shape[0])`; rows with other indices are dropped.
        dense_shape: the shape of the parameter. Kernels and optimizers do not need it; `todense` does.

    >>> rows = IndexedSlices(jnp.ones((2, 3)), jnp.array([1, 1]), (4, 3))
    >>> rows.todense()[1].tolist()
    [2.0, 2.0, 2.0]
    """

    values: Any
    indices: Any
    dense_shape: tuple[int, ...] | None = field(default=None, metadata={"static": True})

    def todense(self) -> Array:
        """Return the dense gradient, with duplicate rows summed.

        Raises:
            ValueError: without a `dense_shape`.
        """
        if self.dense_shape is None:
            raise ValueError("`todense` needs `dense_shape`. Received: dense_shape=None")
        return scatter_sum(self.values, self.indices, tuple(self.dense_shape))


def is_bcoo(g: Any) -> bool:
    """Whether `g` is a BCOO. Never imports its module, which takes half a second, most of it for SciPy."""
    return isinstance(g, getattr(sys.modules.get("jax.experimental.sparse"), "BCOO", ()))


def is_sparse(g: Any) -> bool:
    return isinstance(g, IndexedSlices) or is_bcoo(g)


def fits(g: Any, shape: tuple[int, ...]) -> bool:
    """Whether the sparse gradient `g` fits a parameter of `shape`."""
    if is_bcoo(g):
        return tuple(g.shape) == shape
    if not shape or tuple(g.dense_shape or shape) != shape:
        return False
    return np.shape(g.values) == (*np.shape(g.indices), *shape[1:])


def shape_of(g: Any) -> str:
    """Describe the shape of a gradient, for an error message."""
    if isinstance(g, IndexedSlices):
        return (
            f"IndexedSlices of values {np.shape(g.values)}, indices {np.shape(g.indices)}, dense_shape {g.dense_shape}"
        )
    return str(tuple(np.shape(g)))


def scatter_sum(values: Any, indices: Any, shape: tuple[int, ...]) -> Array:
    rows = jnp.asarray(values).reshape(-1, *shape[1:])
    at = jnp.zeros(shape, rows.dtype).at[valid_indices(indices, shape[0])]
    return at.add(rows, mode="drop", wrap_negative_indices=False)


def valid_indices(indices: Any, count: int) -> Array:
    """Return the indices in one axis, as int32 or wider, with `count` in the place of those outside of [0, count)."""
    indices = jnp.asarray(indices).reshape(-1)
    if indices.dtype.itemsize < 4:
        indices = indices.astype(jnp.int32)  # a narrow dtype cannot hold `count`
    outside = (indices < 0) | (indices >= count)
    return jnp.where(outside, count, indices).astype(jnp.int64 if indices.dtype.itemsize == 8 else jnp.int32)


def densify(g: Any, shape: tuple[int, ...]) -> Any:
    """Convert a gradient of a parameter of `shape` to a dense array, if it is sparse."""
    if is_bcoo(g):
        return g.todense()
    return scatter_sum(g.values, g.indices, shape) if isinstance(g, IndexedSlices) else g


def rows_of(g: Any) -> IndexedSlices | None:
    """Return a sparse gradient as rows; None if it is dense, or a BCOO without rows (`n_sparse=1`, `n_batch=0`)."""
    if is_bcoo(g) and g.n_sparse == 1 and g.n_batch == 0:
        return IndexedSlices(g.data, g.indices[:, 0], tuple(g.shape))
    return g if isinstance(g, IndexedSlices) else None
