"""MARS: gradients corrected by their change since the last step."""

from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.clock import Clock
from jaxopt_keras.language.fields import Amount, Decay
from jaxopt_keras.language.modifier import Modifier
from jaxopt_keras.language.nested import Both
from jaxopt_keras.language.numerics import squarable
from jaxopt_keras.language.rule import Signed


class Mars(Modifier):
    """Variance reduction of MARS (Yuan et al. 2024, arXiv:2411.10438), around any rule.

        c = g + gamma beta / (1 - beta) (g - h)         h <- g, the last gradient, from 0
        c <- c / max(norm(c), 1)                        with `clip`
        p <- p + u                                      u: the step of the rule inside for the gradient c

    Args:
        gamma: the strength of the correction; 0: none.
        beta: the decay of the momentum in the rule inside: the authors' AdamW has 0.95.
        clip: limit the norm of each array of corrected gradients to 1.
    """

    needs: ClassVar[Any] = property(lambda self: "leaf" if self.clip else "element")

    gamma: Amount = 0.025
    beta: Decay = 0.95
    clip: bool = True

    class State(NamedTuple):
        last_gradient: Signed

    def update(self, g: Array, p: Array, s: Both, at: Clock) -> tuple[Array, Both]:
        g = squarable(g)
        c = g + self.gamma * self.beta / (1 - self.beta) * (g - s.own.last_gradient)
        if self.clip:
            c = c / jnp.maximum(at.norm(c), 1)
        step, s = self.within(c, p, s, at)
        return step, s._replace(own=self.State(g))
