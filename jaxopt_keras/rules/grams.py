"""Grams: the size of Adam's step in the direction of the gradient."""

from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import ema, root, squarable, square
from jaxopt_keras.language.rule import Amount, Clock, Decay, NonNegative, Rate, Rule, Signed


class Grams(Rule):
    """Grams, "gradient descent with adaptive momentum scaling" (Cao, Li & Song 2024, arXiv:2412.17107).

        m <- beta_1 m + (1 - beta_1) g          v <- beta_2 v + (1 - beta_2) g²
        u = m / (1 - beta_1^t) / (sqrt(v / (1 - beta_2^t)) + epsilon)
        p <- p - lr sign(g) |u|

    Args:
        beta_1: the decay of `momentum`, the average of gradients.
        beta_2: the decay of `velocity`, the average of squared gradients.
        epsilon: a constant added to the denominator, so that it is not 0.
    """

    variants: ClassVar = ("authors",)

    learning_rate: Rate = 1e-3
    beta_1: Decay = 0.9
    beta_2: Decay = 0.999
    epsilon: Amount = 1e-6

    class State(NamedTuple):
        momentum: Signed
        velocity: NonNegative

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        g = squarable(g)
        m = ema(s.momentum, g, self.beta_1)
        v = ema(s.velocity, square(g), self.beta_2)
        u = m / (1 - self.beta_1**at.t) / (root(v / (1 - self.beta_2**at.t)) + self.epsilon)
        return -at.lr * jnp.sign(g) * jnp.abs(u), self.State(m, v)
