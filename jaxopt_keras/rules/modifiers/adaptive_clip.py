"""Adaptive gradient clipping: the gradient of a unit is no larger than a part of the unit's weights."""

from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.clock import Clock
from jaxopt_keras.language.fields import Amount
from jaxopt_keras.language.modifier import Modifier
from jaxopt_keras.language.nested import Both
from jaxopt_keras.language.numerics import root, squarable, square


def norms(x: Array) -> Array:
    """Return the norm of each unit: of a whole vector; of a kernel along its first axis, or all axes but the last."""
    axes = tuple(range(x.ndim)) if x.ndim < 2 else (0,) if x.ndim < 4 else tuple(range(x.ndim - 1))
    return root(jnp.sum(square(squarable(x)), axes, keepdims=True))


class AdaptiveClip(Modifier):
    """Adaptive gradient clipping (Brock et al. 2021, arXiv:2102.06171), around any rule.

        c = clipping max(norm(p), eps)          the norms of each unit
        g <- g min(1, c / norm(g))
        p <- p + u                              u: the step of the rule inside for this gradient

    A unit is a column of a matrix, or of the matrices along the first axis of three; of a convolution's kernel all
    that leads to one output; and a whole vector.

    Args:
        clipping: the greatest norm of a gradient, in units of the norm of its weights.
        eps: the least norm of weights that counts, so that those that start as zeros can move.
    """

    decays: ClassVar = True
    needs: ClassVar = "matrix"
    keeps_steps: ClassVar = True

    clipping: Amount = 0.01
    eps: Amount = 1e-3

    def update(self, g: Array, p: Array, s: Both, at: Clock) -> tuple[Array, Both]:
        g = squarable(g)
        limit, size = self.clipping * jnp.maximum(norms(p), self.eps), norms(g)
        return self.within(jnp.where(size > limit, g * (limit / jnp.where(size > 0, size, 1)), g), p, s, at)
