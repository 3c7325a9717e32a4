"""Yogi: Adam whose second moment changes by no more than its gradient's share."""

from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import ema, root, squarable, square
from jaxopt_keras.language.rule import Amount, Clock, Decay, NonNegative, Rate, Rule, Signed


class Yogi(Rule):
    """Yogi (Zaheer et al. 2018, "Adaptive methods for nonconvex optimization").

        m <- beta_1 m + (1 - beta_1) g          v <- v - (1 - beta_2) sign(v - g²) g²
        p <- p - lr m / (1 - beta_1^t) / (sqrt(v / (1 - beta_2^t)) + epsilon)

    v starts as initial_accumulator_value. `variant="optax"`: m does too.

    Args:
        beta_1: the decay of `momentum`, the average of gradients.
        beta_2: 1 minus the weight of a squared gradient in `velocity`.
        epsilon: a constant added to the denominator; large, as in the paper.
        initial_accumulator_value: the initial `velocity`.
    """

    variants: ClassVar = ("authors", "optax")

    learning_rate: Rate = 0.01
    beta_1: Decay = 0.9
    beta_2: Decay = 0.999
    epsilon: Amount = 1e-3
    initial_accumulator_value: Amount = 1e-6

    class State(NamedTuple):
        momentum: Signed
        velocity: NonNegative

    def init(self, p: Array) -> State:
        start = self.initial_accumulator_value
        return self.State(jnp.full_like(p, start if self.variant == "optax" else 0), jnp.full_like(p.real, start))

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        g = squarable(g)
        m = ema(s.momentum, g, self.beta_1)
        v = s.velocity - (1 - self.beta_2) * jnp.sign(s.velocity - square(g)) * square(g)
        u = m / (1 - self.beta_1**at.t) / (root(v / (1 - self.beta_2**at.t)) + self.epsilon)
        return -at.lr * u, self.State(m, v)
