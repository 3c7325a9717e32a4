"""Updates of touched rows only: the rows of a sparse gradient, gathered from the parameter and its slots.

The work is proportional to the number of rows if parameter and slots are donated, so that the scatter is in place.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.sparse import IndexedSlices, valid_indices


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
    return jax.tree.map(lambda a: a.at[rows.indices].get(mode="clip", wrap_negative_indices=False), x)


def scatter(old: Any, new: Any, rows: Rows | None) -> Any:
    """Replace the touched rows of `old` by `new`; the whole of it if `rows` is None."""
    if rows is None:
        return new

    def put(a: Array, b: Array) -> Array:
        at = a.at[rows.indices]
        return at.set(b.astype(a.dtype), mode="drop", unique_indices=True, wrap_negative_indices=False)

    return jax.tree.map(put, old, new)
