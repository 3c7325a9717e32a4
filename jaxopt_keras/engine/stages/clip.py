"""Keras's three ways to clip gradients, at most one of which is on."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import compute_dtype, norm
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
        return g * _factor(norm(g), limit.astype(g.real.dtype))

    return [g if g is None else one(g) for g in grads]


def _factor(total: Array, limit: Array) -> Array:
    """Compute c / max(norm, c). A limit of 0 is off."""
    return jnp.where(limit > 0, limit / jnp.where(limit > 0, jnp.maximum(total, limit), 1), 1)


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
    leaves = jax.tree.leaves(tree, is_leaf=is_sparse)
    return norm(*(_dense(x) for x in leaves), dtype=jnp.result_type(float))


def _dense(x: Any) -> Array:
    x = jnp.asarray(x.todense() if is_sparse(x) else x)
    return x.astype(compute_dtype(x.dtype) if jnp.issubdtype(x.dtype, jnp.inexact) else float)


def by_global_norm(grads: Grads, limit: Array) -> Grads:
    """Scale all arrays by their joint norm: g c / max(|all g|, c). If it is not finite, all become NaN, as in Keras."""
    total = global_norm(grads)
    scale = _factor(total, limit) + (total - total)
    return [g if g is None else g * scale.astype(g.real.dtype) for g in grads]


def by_value(grads: Grads, limit: Array) -> Grads:
    """Clip each element to [-c, c]; of complex numbers the real and the imaginary part. A limit of 0 is off."""

    def one(g: Array) -> Array:
        c = jnp.where(limit > 0, limit, jnp.inf).astype(g.real.dtype)
        if jnp.iscomplexobj(g):
            return jnp.clip(g.real, -c, c) + 1j * jnp.clip(g.imag, -c, c)
        return jnp.clip(g, -c, c)

    return [g if g is None else one(g) for g in grads]
