"""Validation of gradients, their conversion to the dtype of the arithmetic, and their division by a loss scale."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_keras.engine import rows
from jaxopt_keras.engine.core import Leaf
from jaxopt_keras.engine.given import EMPTY, HOW, LOSS, WEIGHT, as_loss
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


def read_loss(hyper: dict[str, Any]) -> Any:
    """Return the loss of a call; that of a call without gradients is 0.

    Raises:
        ValueError: if it was not given.
    """
    if EMPTY in hyper:
        return as_loss(0)
    if LOSS not in hyper:
        raise ValueError(
            "This optimizer needs the loss of the gradients. Received: none. Pass it: "
            f"{HOW.format('value', 'loss')}; `minimize` passes it."
        )
    return hyper[LOSS]


def unscaled(grads: Any, scale: Any) -> Any:
    """Divide the gradients of a scaled loss by `scale`, in the dtype of the arithmetic."""
    return jax.tree.map(lambda g: _divide(g, scale), grads)


def _divide(g: Any, scale: Any) -> Any:
    if not jnp.issubdtype(getattr(g, "dtype", int), jnp.inexact):  # indices of a sparse gradient, or float0
        return g
    g = g.astype(compute_dtype(g.dtype))
    return g / scale.astype(g.real.dtype)


def sum_over(axis_name: Any, grads: Any) -> Any:
    """Sum each gradient over those of the mapped axes over which it varies.

    `jax.shard_map` with `check_vma=True`, its default, sums the gradients of replicated parameters itself.
    """

    def one(g: Any) -> Any:
        over = _varying(axis_name, g)
        return jax.lax.psum(g, over) if over else g

    return jax.tree.map(one, grads)


def mean_over(axis_name: Any, grads: Any, weight: Any) -> tuple[Any, Any]:
    """Return the mean of gradients over the mapped axes, each with the `weight` of its device, and the sum of weights.

    It is 0 if all weights are 0. `axis_name` is None: there is one device. A gradient of weight 0 may be NaN, as the
    mean over no token is.

    Raises:
        ValueError: if `jax.shard_map` has summed gradients already over an axis over which the weight varies.
    """
    over = {(*_varying(axis_name, g),) for g in jax.tree.leaves(grads)} if axis_name is not None else set()
    grads = jax.tree.map(lambda g: jnp.where(weight > 0, g, 0), grads)
    axes = max(over, key=len, default=())
    if len(over) > 1 or not {*(_varying(axis_name, weight) if over else ())} <= {*axes}:
        raise ValueError(
            f"`weight` differs by device, so it must weigh gradients before their sum over {axis_name!r}. Received: "
            "gradients that are summed already, as `jax.shard_map` does with `check_vma=True`. Divide the loss of each "
            "device: `weight * loss / total` with `total = jax.lax.psum(weight, axis)`, and pass `weight=total`. Or "
            "set `check_vma=False`."
        )
    if not axes:
        return grads, weight
    copies = [axis for axis in axes if axis not in _varying(axis_name, weight)]  # devices with one weight
    total = sum_over(axes, weight) * math.prod(jax.lax.axis_size(axis) for axis in copies)
    share = weight / jnp.where(total > 0, total, 1)
    return jax.tree.map(lambda g: jax.lax.psum(g * share.astype(g.real.dtype), axes), grads), total


def _varying(axis_name: Any, x: Any) -> list[str]:
    """Return those of the mapped axes over which `x` varies; all, where JAX does not track it."""
    axes = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
    tracked = {axis for axis in axes if jax.typeof(jax.lax.axis_index(axis)).manual_axis_type.varying}
    return [axis for axis in axes if axis not in tracked or axis in jax.typeof(x).manual_axis_type.varying]


def collected(
    axis_name: Any, grads: list[Any], loss: Any, hyper: dict[str, Any], reduce: bool
) -> tuple[list[Any], Any, dict[str, Any]]:
    """Return the gradients and the loss of all devices, and the run-time values with the sum of their weights.

    Without weights they are summed. With weights they are means.
    """
    axis_name = axis_name if reduce else None
    if WEIGHT in hyper:
        grads, total = mean_over(axis_name, grads, weight := hyper[WEIGHT])
        return grads, mean_over(axis_name, loss, weight)[0], hyper | {WEIGHT: total}
    if axis_name is None:
        return grads, loss, hyper
    return sum_over(axis_name, grads), sum_over(axis_name, loss), hyper
