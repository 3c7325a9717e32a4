"""Hyperball: each matrix keeps its norm, and the rate is the relative length of a step."""

from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.clock import Clock
from jaxopt_keras.language.modifier import Modifier
from jaxopt_keras.language.nested import Both


class Hyperball(Modifier):
    """Hyperball (Wen et al. 2025), around any rule: AdamH, MuonH.

        u = the step of the rule inside, without weight decay
        q = p + lr norm(p) / norm(u) u
        p <- norm(p) / norm(q) q

    The norm of an array never changes, and the rate is the relative length of a step. Weight decay would have no
    meaning, and these arrays have none. Hyperball is for arrays with two axes or more; others, and arrays of zeros, are
    updated by the rule inside alone.
    """

    needs: ClassVar = "leaf"

    def covers(self, path: str, p: Array) -> bool:
        return p.ndim > 1

    def decoupled(self, weight_decay: Any) -> None:
        return None

    def update(self, g: Array, p: Array, s: Both, at: Clock) -> tuple[Array, Both]:
        step, s = self.within(g, p, s, at.without_decay())
        radius, size = at.norm(p), at.norm(step)
        q = p + at.lr * radius * (step / jnp.where(size > 0, size, 1))
        length = at.norm(q)
        q = q * (radius / jnp.where(length > 0, length, 1))
        return jnp.where(radius > 0, q - p, step), s
