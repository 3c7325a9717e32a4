"""Touched rows only: the same update, on the rows of a sparse gradient gathered out of the parameter and its slots.

The work is in proportion to the rows, provided that parameter and slots are donated: the scatter is then in place.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.sparse import IndexedSlices


class Rows(NamedTuple):
    """Distinct rows. Unused places hold zeros and indices past the end, which nothing reads."""

    values: Array  # (n, ...)
    indices: Array  # (n,)


def merge(slices: IndexedSlices, shape: tuple[int, ...]) -> Rows:
    """The rows of `slices`, each index once, duplicates summed."""
    values = jnp.asarray(slices.values).reshape(-1, *shape[1:])
    indices = jnp.asarray(slices.indices).reshape(-1)
    count, n = shape[0], len(indices)
    indices = jnp.where(indices < 0, indices + count, indices)
    indices = jnp.where((indices < 0) | (indices >= count), count, indices)
    # Each row is summed where its index first stands in the order. Sorting positions along takes XLA on a CPU 7 times
    # as long as sorting indices alone, and `jnp.unique` does.
    ordered = jax.lax.sort(indices)
    place = jnp.searchsorted(ordered, indices)
    sums = jnp.zeros_like(values).at[place].add(values)
    unused = (ordered == count) | jnp.concatenate([jnp.zeros(min(n, 1), bool), ordered[1:] == ordered[:-1]])
    past_the_end = count + jnp.arange(n, dtype=ordered.dtype)  # keeps the indices distinct
    mask = unused.reshape(-1, *[1] * (values.ndim - 1))
    # The barrier: what follows is arithmetic on rows alone, which can be one loop.
    return Rows(*jax.lax.optimization_barrier((jnp.where(mask, 0, sums), jnp.where(unused, past_the_end, ordered))))


def gather(x: Any, rows: Rows | None) -> Any:
    """The rows of an array, or of every array in a dict of slots; all of it where `rows` is None."""
    return (
        x
        if rows is None
        else jax.tree.map(lambda a: a.at[rows.indices].get(mode="clip", wrap_negative_indices=False), x)
    )


def scatter(old: Any, new: Any, rows: Rows | None) -> Any:
    """`old` with its touched rows replaced by `new`; all of it where `rows` is None."""
    if rows is None:
        return new

    def put(a: Array, b: Array) -> Array:
        at = a.at[rows.indices]
        return at.set(b.astype(a.dtype), mode="drop", unique_indices=True, wrap_negative_indices=False)

    return jax.tree.map(put, old, new)
