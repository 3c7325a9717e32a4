"""Keras's three ways to clip gradients, at most one of which is on."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import norm

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


def global_norm(grads: Grads) -> Array:
    """Compute the joint norm of all arrays, in the default float dtype."""
    return norm(*(g for g in grads if g is not None), dtype=jnp.result_type(float))


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
