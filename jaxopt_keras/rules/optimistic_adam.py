"""Optimistic Adam: the change of Adam's direction is expected to go on."""

from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import ema, root, squarable, square
from jaxopt_keras.language.rule import Amount, Clock, Decay, NonNegative, Number, Rate, Rule, Signed


class OptimisticAdam(Rule):
    """Optimistic Adam (Daskalakis et al. 2017, arXiv:1711.00141), for games of min and max.

        m <- beta_1 m + (1 - beta_1) g          v <- beta_2 v + (1 - beta_2) g²
        n = beta_1 m / (1 - beta_1^(t+1)) + (1 - beta_1) g / (1 - beta_1^t)
        u = n / (sqrt(v / (1 - beta_2^t)) + epsilon)
        p <- p - lr (alpha u + beta (u - h))            h: the last u; in the first update u

    These are the arguments of `optax.optimistic_adam_v2`.

    Args:
        beta_1: the decay of `momentum`, the average of gradients.
        beta_2: the decay of `velocity`, the average of squared gradients.
        epsilon: a constant added to the denominator, so that it is not 0.
        alpha: the factor of Adam's direction.
        beta: the factor of its change.
        nesterov: Nadam's direction, as above. False: Adam's, with n = m / (1 - beta_1^t).
    """

    variants: ClassVar = ("optax",)

    learning_rate: Rate = 1e-3
    beta_1: Decay = 0.9
    beta_2: Decay = 0.999
    epsilon: Amount = 1e-8
    alpha: Number = 1.0
    beta: Number = 1.0
    nesterov: bool = True

    class State(NamedTuple):
        momentum: Signed
        velocity: NonNegative
        last_direction: Signed

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        g = squarable(g)
        m = ema(s.momentum, g, self.beta_1)
        v = ema(s.velocity, square(g), self.beta_2)
        n = m / (1 - self.beta_1**at.t)
        if self.nesterov:
            n = self.beta_1 * m / (1 - self.beta_1 ** (at.t + 1)) + (1 - self.beta_1) * g / (1 - self.beta_1**at.t)
        u = n / (root(v / (1 - self.beta_2**at.t)) + self.epsilon)
        last = jnp.where(at.t == 1, u, s.last_direction)
        return -at.lr * (self.alpha * u + self.beta * (u - last)), self.State(m, v, u)
