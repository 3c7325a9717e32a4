"""Keras's three ways to clip gradients, at most one of which is on."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import compute_dtype, norm, scaled_norm
from jaxopt_keras.language.sparse import is_sparse

Grads = list[Array | None]


def clip(grads: Grads, hyper: dict[str, Any]) -> Grads:
    """Clip gradients by the limit in `hyper`, if there is one (Pascanu et al. 2013, arXiv:1211.5063)."""
    for name, stage in (("clipnorm", by_norm), ("global_clipnorm", by_global_norm), ("clipvalue", by_value)):
        if name in hyper:
            return stage(grads, hyper[name])
    return grads


def by_norm(grads: Grads, limit: Array) -> Grads:
    """Scale each array by its own norm: g c / max(|g|, c)."""

    def one(g: Array) -> Array:
        return _shortened(g, *scaled_norm(g), limit)

    return [g if g is None else one(g) for g in grads]


def _shortened(g: Array, size: Array, unit: Array, limit: Array) -> Array:
    """Compute g c / max(norm, c) for a norm of `size * unit`. A limit of 0 is off.

    Where the norm is great, c / norm may be too small for a float. Then g is multiplied by two factors.
    """
    dtype, limit = g.real.dtype, limit.astype(size.dtype)
    down = jnp.where((limit > 0) & ((size > 2.0**64) | (unit > 1)), 2.0**-64, 1).astype(size.dtype)
    greatest = jnp.maximum(size * (unit * down), limit * down)
    factor = jnp.where(limit > 0, limit / jnp.where(limit > 0, greatest, 1), 1)
    return g * down.astype(dtype) * factor.astype(dtype)


def global_norm(tree: Any) -> Array:
    """Compute the joint Euclidean norm of all arrays of a pytree, as `global_clipnorm` does: sqrt(sum |x|²).

    The squares are summed in float32 or wider; where the sum overflows, the norm is computed from scaled elements.

    Args:
        tree: a pytree of numbers, such as gradients; also of `IndexedSlices` or BCOO. None counts as 0.

    Returns:
        A 0-d array of the default float dtype, 0 for a tree without arrays.

    >>> float(global_norm({"w": jnp.array([3.0, 0.0]), "b": jnp.array(4.0), "frozen": None}))
    5.0
    >>> float(global_norm(jnp.full(4, 1e20))) / 1e20  # its squares are infinite in float32
    2.0
    """
    return norm(*_arrays(tree), dtype=jnp.result_type(float))


def _arrays(tree: Any) -> list[Array]:
    return [_dense(x) for x in jax.tree.leaves(tree, is_leaf=is_sparse)]


def _dense(x: Any) -> Array:
    x = jnp.asarray(x.todense() if is_sparse(x) else x)
    return x.astype(compute_dtype(x.dtype) if jnp.issubdtype(x.dtype, jnp.inexact) else float)


def by_global_norm(grads: Grads, limit: Array) -> Grads:
    """Scale all arrays by their joint norm: g c / max(|all g|, c). If it is not finite, all become NaN, as in Keras."""
    size, unit = scaled_norm(*_arrays(grads), dtype=jnp.result_type(float))
    size = size + (size - size)  # infinity becomes NaN
    return [g if g is None else _shortened(g, size, unit, limit) for g in grads]


def by_value(grads: Grads, limit: Array) -> Grads:
    """Clip each element to [-c, c]; of complex numbers the real and the imaginary part. A limit of 0 is off."""

    def one(g: Array) -> Array:
        c = jnp.where(limit > 0, limit, jnp.inf).astype(g.real.dtype)
        if jnp.iscomplexobj(g):
            return jnp.clip(g.real, -c, c) + 1j * jnp.clip(g.imag, -c, c)
        return jnp.clip(g, -c, c)

    return [g if g is None else one(g) for g in grads]
