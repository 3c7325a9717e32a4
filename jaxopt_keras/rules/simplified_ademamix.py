"""Simplified AdEMAMix: the sum of a long momentum and of the gradient, over Adam's denominator."""

from typing import ClassVar, NamedTuple

from jax import Array

from jaxopt_keras.language.numerics import ema, root, squarable, square
from jaxopt_keras.language.rule import Amount, Clock, Decay, NonNegative, Rate, Rule, Signed


class SimplifiedAdEMAMix(Rule):
    """Simplified AdEMAMix (Morwani et al. 2025, arXiv:2502.02431).

        m <- beta_1 m + g                       v <- beta_2 v + (1 - beta_2) g²
        p <- p - lr (m + alpha g) / (sqrt(v / (1 - beta_2^t)) + epsilon)

    m is a sum, up to 1 / (1 - beta_1) times as large as gradients are: divide Adam's rate by as much.

    Args:
        beta_1: the decay of `momentum`, the sum of gradients.
        beta_2: the decay of `velocity`, the average of squared gradients.
        alpha: the weight of the gradient beside the sum.
        epsilon: a constant added to the denominator, so that it is not 0.
    """

    variants: ClassVar = ("optax",)

    learning_rate: Rate = 1e-4
    beta_1: Decay = 0.99
    beta_2: Decay = 0.95
    alpha: Amount = 0.0
    epsilon: Amount = 1e-8

    class State(NamedTuple):
        momentum: Signed
        velocity: NonNegative

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        g = squarable(g)
        m = self.beta_1 * s.momentum + g
        v = ema(s.velocity, square(g), self.beta_2)
        u = (m + self.alpha * g) / (root(v / (1 - self.beta_2**at.t)) + self.epsilon)
        return -at.lr * u, self.State(m, v)
