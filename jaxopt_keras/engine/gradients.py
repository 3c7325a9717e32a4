"""Validation of gradients, their conversion to the dtype of the arithmetic, and their division by a loss scale."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_keras.engine import rows
from jaxopt_keras.engine.core import LOSS, Leaf
from jaxopt_keras.engine.rows import Rows
from jaxopt_keras.language.numerics import compute_dtype
from jaxopt_keras.language.sparse import densify, fits, is_sparse, rows_of, shape_of


def read_gradient(g: Any, p: Any, leaf: Leaf, *, as_rows: bool) -> Any:
    """Convert a gradient to the dtype of the arithmetic: to an array, to `Rows` (sparse, with `as_rows`), or to None.

    Raises:
        ValueError: if its shape is not the parameter's. TypeError: if it is complex and the parameter is real, or the
            indices of a sparse gradient are not integers.
    """
    if g is None or getattr(g, "dtype", None) == jax.dtypes.float0:
        return None
    like = g if p is None else p
    shape, dtype = np.shape(like), compute_dtype(like.dtype)
    indices = getattr(g, "indices", None)  # only `IndexedSlices` and BCOO have them
    if is_sparse(g) and not jnp.issubdtype(getattr(indices, "dtype", float), jnp.integer):
        raise TypeError(
            f"The gradient of `{leaf.path}` must have arrays of values and of integer indices. Received: indices "
            f"of {getattr(indices, 'dtype', type(indices).__name__)}"
        )
    if np.shape(g) != shape if not is_sparse(g) else not fits(g, shape):
        raise ValueError(
            f"The gradient of `{leaf.path}` must have the parameter's shape {shape}. Received: {shape_of(g)}"
        )
    slices = rows_of(g) if as_rows and 0 not in shape else None
    g = rows.merge(slices, shape) if slices else jnp.asarray(densify(g, shape))
    if jnp.iscomplexobj(jax.tree.leaves(g)[0]) and not jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"The gradient of `{leaf.path}` must be real, as the parameter is. Received: a complex one")
    return Rows(g.values.astype(dtype), g.indices) if isinstance(g, Rows) else g.astype(dtype)


def read_loss(hyper: dict[str, Any], axis_name: Any) -> Any:
    """Return the loss of a call, summed over the mapped axes like its gradients.

    Raises:
        ValueError: if it was not given.
    """
    if LOSS not in hyper:
        raise ValueError(
            "This optimizer needs the loss of the gradients. Received: none. Pass it: `kernel.step(params, state, "
            "grads, value=loss)`, `kernel.update(grads, state, params, value=loss)`, or in the stateful face "
            "`apply_gradients(pairs, loss=loss)`; `minimize` passes it."
        )
    return hyper[LOSS] if axis_name is None else sum_over(axis_name, [hyper[LOSS]])[0]


def unscaled(grads: Any, scale: Any) -> Any:
    """Divide the gradients of a scaled loss by `scale`, in the dtype of the arithmetic."""
    return jax.tree.map(lambda g: _divide(g, scale), grads)


def _divide(g: Any, scale: Any) -> Any:
    if not jnp.issubdtype(getattr(g, "dtype", int), jnp.inexact):  # indices of a sparse gradient, or float0
        return g
    g = g.astype(compute_dtype(g.dtype))
    return g / scale.astype(g.real.dtype)


def sum_over(axis_name: Any, grads: list[Any]) -> list[Any]:
    """Sum each gradient over those of the mapped axes over which it varies.

    `jax.shard_map` with `check_vma=True`, its default, sums the gradients of replicated parameters itself.
    """
    axes = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
    tracked = {axis for axis in axes if jax.typeof(jax.lax.axis_index(axis)).manual_axis_type.varying}

    def one(g: Any) -> Any:
        over = [axis for axis in axes if axis not in tracked or axis in jax.typeof(g).manual_axis_type.varying]
        return jax.lax.psum(g, over) if over else g

    return jax.tree.map(one, grads)
