"""Signum: the sign of the momentum."""

from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import ema
from jaxopt_keras.language.rule import Clock, Decay, Rate, Rule, Signed


class Signum(Rule):
    """Signum, signSGD with momentum (Bernstein et al. 2018, arXiv:1802.04434).

        m <- momentum m + (1 - momentum) g
        p <- p - lr sign(m)

    `variant="optax"` is the same.

    Args:
        momentum: the decay of the average of gradients; 0: the signs of gradients, signSGD.
    """

    variants: ClassVar = ("authors", "optax")

    learning_rate: Rate = 0.01
    momentum: Decay = 0.9

    class State(NamedTuple):
        momentum: Signed

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        m = ema(s.momentum, g, self.momentum)
        return -at.lr * jnp.sign(m), self.State(m)
