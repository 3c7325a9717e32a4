"""Gradient centralization: the gradient of each unit has the mean zero."""

from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.clock import Clock
from jaxopt_keras.language.modifier import Modifier
from jaxopt_keras.language.nested import Both


class Centralized(Modifier):
    """Gradient centralization (Yong et al. 2020, arXiv:2004.01461), around any rule.

        g <- g - mean(g)                the mean over all axes but the last, that of the units
        p <- p + u                      u: the step of the rule inside for this gradient

    It changes arrays with two axes or more: a kernel's last axis is that of its outputs.
    """

    needs: ClassVar = "matrix"
    keeps_steps: ClassVar = True

    def covers(self, path: str, p: Array) -> bool:
        return p.ndim > 1

    def update(self, g: Array, p: Array, s: Both, at: Clock) -> tuple[Array, Both]:
        axes = tuple(range(g.ndim - 1))
        count = max(g.size // max(g.shape[-1], 1), 1)
        return self.within(g - jnp.sum(g / count, axes, keepdims=True), p, s, at)
