"""Nadam: Adam with Nesterov momentum."""

from dataclasses import field
from typing import NamedTuple

from jax import Array

from jaxopt_keras.language.numerics import ema, root, squarable, square
from jaxopt_keras.language.rule import Amount, Clock, Decay, EpsRoot, NonNegative, Rate, Rule, Signed


class Nadam(Rule):
    """Nadam (Dozat 2016), with its momentum schedule.

        mu_t = beta_1 (1 - 0.96^t / 2)          U <- U mu_t, once for all arrays, from 1
        m <- beta_1 m + (1 - beta_1) g          v <- beta_2 v + (1 - beta_2) g²
        m' = mu_{t+1} m / (1 - U mu_{t+1}) + (1 - mu_t) g / (1 - U)
        p <- p - lr m' / (sqrt(v / (1 - beta_2^t)) + epsilon)

    `variant="optax"` has a constant momentum: m' = beta_1 m / (1 - beta_1^{t+1}) + (1 - beta_1) g / (1 - beta_1^t).

    Args:
        beta_1: the limit of the decay of `momentum`; with "optax" the decay itself.
        beta_2: the decay of `velocity`, the average of squared gradients.
        epsilon: a constant added to the denominator, so that it is not 0.
        eps_root: a constant added to the bias-corrected `velocity`, under the root.
    """

    learning_rate: Rate = 1e-3
    beta_1: Decay = 0.9
    beta_2: Decay = 0.999
    epsilon: Amount = 1e-7
    eps_root: EpsRoot = field(default=0.0, kw_only=True)

    class State(NamedTuple):
        momentum: Signed
        velocity: NonNegative

    class Scalars(NamedTuple):
        u_product: Array | float

    def scalars(self) -> Scalars:
        return self.Scalars(u_product=1.0)

    def momentum_at(self, t: Array) -> Array:
        return self.beta_1 * (1 - 0.5 * 0.96**t)

    def advance(self, scalars: Scalars, at: Clock) -> Scalars:
        return self.Scalars(scalars.u_product * self.momentum_at(at.t))

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        g = squarable(g)
        m = ema(s.momentum, g, self.beta_1)
        v = ema(s.velocity, square(g), self.beta_2)
        if self.variant == "optax":
            ahead = self.beta_1 * m / (1 - self.beta_1 ** (at.t + 1))
            ahead = ahead + (1 - self.beta_1) * g / (1 - self.beta_1**at.t)
        else:
            mu, mu_next, product = self.momentum_at(at.t), self.momentum_at(at.t + 1), at.scalars.u_product
            ahead = mu_next * m / (1 - product * mu_next) + (1 - mu) * g / (1 - product)
        step = -at.lr * ahead / (root(v / (1 - self.beta_2**at.t) + self.eps_root) + self.epsilon)
        return step, self.State(m, v)
