"""ACProp: gradients over the variance of those before them."""

from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import ema, root, squarable, square
from jaxopt_keras.language.rule import Amount, Clock, Decay, NonNegative, Rate, Rule, Signed


class ACProp(Rule):
    """ACProp, "asynchronous centering" (Zhuang et al. 2021, arXiv:2110.05454).

        p <- p - lr g / (sqrt(v / (1 - beta_2^(t-1))) + epsilon)        in the first update 1 + epsilon is the divisor
        v <- beta_2 v + (1 - beta_2) (g - m)² + epsilon
        m <- beta_1 m + (1 - beta_1) g

    A gradient is divided by what was known before it, so that it cannot make its own step small. After gradients near 0
    a step is hardly bounded: take an epsilon of 1e-8 there, and with slots in 8 or 4 bits.

    Args:
        beta_1: the decay of `momentum`, the average of gradients, which only centers them.
        beta_2: the decay of `variance`, the average of squared distances of gradients from `momentum`.
        epsilon: a constant added to `variance` in every update, and to the denominator.
    """

    variants: ClassVar = ("optax",)

    learning_rate: Rate = 1e-3
    beta_1: Decay = 0.9
    beta_2: Decay = 0.999
    epsilon: Amount = 1e-16

    class State(NamedTuple):
        momentum: Signed
        variance: NonNegative

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        # After an update it is epsilon at least: 0 is that of a parameter or row before its first one.
        before = jnp.where(s.variance == 0, 1, s.variance / (1 - self.beta_2 ** jnp.maximum(at.t - 1, 1)))
        v = ema(s.variance, square(squarable(g, 2) - squarable(s.momentum, 2)), self.beta_2) + self.epsilon
        return -at.lr * g / (root(before) + self.epsilon), self.State(ema(s.momentum, g, self.beta_1), v)
