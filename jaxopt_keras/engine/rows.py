"""Updates of touched rows only: the rows of a sparse gradient, gathered from the parameter and its slots.

The work is proportional to the number of rows if parameter and slots are donated, so that the scatter is in place.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.places import platform
from jaxopt_keras.language.sparse import IndexedSlices, valid_indices
from jaxopt_keras.storage.tiles import layout


class Rows(NamedTuple):
    """Rows with distinct indices. Unused entries are zeros, with indices past the end: they have no effect."""

    values: Array  # (n, ...)
    indices: Array  # (n,)


def merge(slices: IndexedSlices, shape: tuple[int, ...]) -> Rows:
    """Return the rows of `slices`, each index once, with duplicates summed."""
    values = jnp.asarray(slices.values).reshape(-1, *shape[1:])
    count = shape[0]
    indices = valid_indices(slices.indices, count)
    n = len(indices)
    # Each row is summed at the first position of its index in the sorted order. `jnp.unique` sorts positions too, which
    # takes XLA on a CPU 7 times as long.
    ordered = jax.lax.sort(indices)
    position = jnp.searchsorted(ordered, indices)
    sums = jnp.zeros_like(values).at[position].add(values)
    unused = (ordered == count) | jnp.concatenate([jnp.zeros(min(n, 1), bool), ordered[1:] == ordered[:-1]])
    past_the_end = count + jnp.arange(n, dtype=ordered.dtype)  # keeps the indices distinct
    mask = unused.reshape(-1, *[1] * (values.ndim - 1))
    # The barrier separates this from the arithmetic on rows, which can then be one native loop.
    return Rows(*jax.lax.optimization_barrier((jnp.where(mask, 0, sums), jnp.where(unused, past_the_end, ordered))))


def gather(x: Any, rows: Rows | None) -> Any:
    """Return the rows of an array, or of every array in a dict of slots; the whole of it if `rows` is None."""
    if rows is None:
        return x

    def get(a: Array) -> Array:
        if _is_narrow(a):
            return _columns(a, rows.indices)
        return a.at[rows.indices].get(mode="clip", wrap_negative_indices=False)

    return jax.tree.map(get, x)


def scatter(old: Any, new: Any, rows: Rows | None) -> Any:
    """Replace the touched rows of `old` by `new`; the whole of it if `rows` is None."""
    if rows is None:
        return new

    def put(a: Array, b: Array) -> Array:
        if _is_narrow(a):
            return write_columns(a, rows.indices, b.astype(a.dtype))
        at = a.at[rows.indices]
        return at.set(b.astype(a.dtype), mode="drop", unique_indices=True, wrap_negative_indices=False)

    return jax.tree.map(put, old, new)


def _is_narrow(a: Array) -> bool:
    """Whether a TPU lays the rows of `a` side by side, along lanes: XLA would turn it around to gather rows."""
    return platform() == "tpu" and a.ndim > 1 and layout(a.shape)[1] == 0


def _columns(a: Array, indices: Array) -> Array:
    """Return rows of `a`, one after the other, read as columns of the array as it is in memory."""
    whole, n = jnp.moveaxis(a, 0, -1), len(indices)

    def copy(i: Array, found: Array) -> Array:
        column = jax.lax.dynamic_slice_in_dim(whole, jnp.minimum(indices[i], len(a) - 1), 1, -1)
        return jax.lax.dynamic_update_slice_in_dim(found, column, i, -1)

    found = jax.lax.fori_loop(0, n, copy, jnp.zeros((*whole.shape[:-1], n), a.dtype))
    return jnp.moveaxis(found, -1, 0)


@jax.jit  # a guard recognizes this function by name
def write_columns(a: Array, indices: Array, new: Array) -> Array:
    """Return `a` with other rows, written in place one after the other; indices past the end write nothing."""
    columns = jnp.moveaxis(new, 0, -1)

    def put(i: Array, whole: Array) -> Array:
        at = jnp.minimum(indices[i], len(a) - 1)
        old, column = (jax.lax.dynamic_slice_in_dim(x, k, 1, -1) for x, k in ((whole, at), (columns, i)))
        return jax.lax.dynamic_update_slice_in_dim(whole, jnp.where(indices[i] < len(a), column, old), at, -1)

    return jnp.moveaxis(jax.lax.fori_loop(0, len(indices), put, jnp.moveaxis(a, 0, -1)), -1, 0)
