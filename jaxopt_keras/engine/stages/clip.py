"""Keras's three ways to clip gradients, at most one of which is on."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import norm, square

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
        c = limit.astype(norm(g).dtype)
        return g * c / jnp.maximum(norm(g), c)

    return [g if g is None else one(g) for g in grads]


def global_norm(grads: Grads) -> Array:
    """Compute the joint norm of all arrays, in the default float dtype."""
    dtype = jnp.result_type(float)
    return jnp.sqrt(sum((jnp.sum(square(g)).astype(dtype) for g in grads if g is not None), jnp.zeros((), dtype)))


def by_global_norm(grads: Grads, limit: Array) -> Grads:
    """Scale all arrays by their joint norm: g c / max(|all g|, c). If it is not finite, all become NaN, as in Keras."""
    total = global_norm(grads)
    scale = limit / jnp.maximum(total, limit) + (total - total)
    return [g if g is None else g * scale.astype(square(g).dtype) for g in grads]


def by_value(grads: Grads, limit: Array) -> Grads:
    """Clip each element to [-c, c]; of complex numbers the real and the imaginary part."""

    def one(g: Array) -> Array:
        c = limit.astype(g.real.dtype)
        if jnp.iscomplexobj(g):
            return jnp.clip(g.real, -c, c) + 1j * jnp.clip(g.imag, -c, c)
        return jnp.clip(g, -c, c)

    return [g if g is None else one(g) for g in grads]
