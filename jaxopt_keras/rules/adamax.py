"""Adamax: Adam with the infinity norm."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import ema
from jaxopt_keras.language.rule import Amount, Clock, Decay, NonNegative, Rate, Rule, Signed


class Adamax(Rule):
    """Adamax (Kingma & Ba 2014, arXiv:1412.6980, section 7.1).

        m <- beta_1 m + (1 - beta_1) g
        u <- max(beta_2 u, |g|)
        p <- p - lr / (1 - beta_1^t) m / (u + epsilon)

    `variant="optax"` has epsilon inside the maximum: u <- max(beta_2 u, |g| + epsilon), p <- p - ... m / u.

    Args:
        beta_1: the decay of `momentum`, the average of gradients.
        beta_2: the decay of the greatest absolute gradient.
        epsilon: a constant added to the denominator, so that it is not 0.
    """

    learning_rate: Rate = 1e-3
    beta_1: Decay = 0.9
    beta_2: Decay = 0.999
    epsilon: Amount = 1e-7

    class State(NamedTuple):
        momentum: Signed
        norm: NonNegative

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        inside, outside = (self.epsilon, 0) if self.variant == "optax" else (0, self.epsilon)
        m = ema(s.momentum, g, self.beta_1)
        u = jnp.maximum(self.beta_2 * s.norm, jnp.abs(g) + inside)
        return -at.lr / (1 - self.beta_1**at.t) * m / (u + outside), self.State(m, u)
