"""AdaBelief: Adam that divides by how far gradients are from what was expected."""

from typing import ClassVar, NamedTuple

from jax import Array

from jaxopt_keras.language.numerics import ema, root, squarable, square
from jaxopt_keras.language.rule import Amount, Clock, Decay, NonNegative, Rate, Rule, Signed


class AdaBelief(Rule):
    """AdaBelief (Zhuang et al. 2020, arXiv:2010.07468).

        m <- beta_1 m + (1 - beta_1) g
        v <- beta_2 v + (1 - beta_2) (g - m)² + epsilon
        p <- p - lr m / (1 - beta_1^t) / (sqrt(v / (1 - beta_2^t)) + epsilon)

    The paper's algorithm with the release's epsilon, and without its rectification, as with its `rectify=False`.
    `variant="optax"` is the same.

    Args:
        beta_1: the decay of `momentum`, the average of gradients.
        beta_2: the decay of `variance`, the average of squared distances of gradients from `momentum`.
        epsilon: a constant added to `variance` in every update, and to the denominator.
    """

    variants: ClassVar = ("authors", "optax")

    learning_rate: Rate = 1e-3
    beta_1: Decay = 0.9
    beta_2: Decay = 0.999
    epsilon: Amount = 1e-16

    class State(NamedTuple):
        momentum: Signed
        variance: NonNegative

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        g = squarable(g, 2)
        m = ema(s.momentum, g, self.beta_1)
        v = ema(s.variance, square(g - m), self.beta_2) + self.epsilon
        u = m / (1 - self.beta_1**at.t) / (root(v / (1 - self.beta_2**at.t)) + self.epsilon)
        return -at.lr * u, self.State(m, v)
