"""LaProp: momentum of normalized gradients."""

from typing import ClassVar, NamedTuple

from jax import Array

from jaxopt_keras.language.numerics import ema, root, squarable, square
from jaxopt_keras.language.rule import Amount, Clock, Decay, NonNegative, Rate, Rule, Signed


class LaProp(Rule):
    """LaProp (Liu, Wang & Ueda 2020, arXiv:2002.04839): Adam that divides before it averages.

        v <- beta_2 v + (1 - beta_2) g²
        n = g / (sqrt(v / (1 - beta_2^t)) + epsilon)
        m <- beta_1 m + (1 - beta_1) lr n
        p <- p - m / (1 - beta_1^t)

    Any two decays go together. Weight decay is p <- p (1 - lr weight_decay) here; the release's is without the rate.

    Args:
        beta_1: the decay of `momentum`, the average of normalized gradients times the rate.
        beta_2: the decay of `velocity`, the average of squared gradients.
        epsilon: a constant added to the denominator, so that it is not 0.
    """

    variants: ClassVar = ("authors",)

    learning_rate: Rate = 4e-4
    beta_1: Decay = 0.9
    beta_2: Decay = 0.999
    epsilon: Amount = 1e-15

    class State(NamedTuple):
        momentum: Signed
        velocity: NonNegative

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        g = squarable(g)
        v = ema(s.velocity, square(g), self.beta_2)
        n = g / (root(v / (1 - self.beta_2**at.t)) + self.epsilon)
        m = ema(s.momentum, at.lr * n, self.beta_1)
        return -m / (1 - self.beta_1**at.t), self.State(m, v)
