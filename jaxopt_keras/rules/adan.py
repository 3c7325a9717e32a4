"""Adan: Nesterov's momentum from differences of gradients."""

from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import ema, root, squarable, square
from jaxopt_keras.language.rule import Amount, Clock, Decay, NonNegative, Rate, Rule, Signed


class Adan(Rule):
    """Adan, "adaptive Nesterov momentum" (Xie et al. 2022, arXiv:2208.06677).

        d = g - h, 0 at first                   h is the last gradient, the slot `gradient`
        m <- beta_1 m + (1 - beta_1) g          n <- beta_2 n + (1 - beta_2) d
        v <- beta_3 v + (1 - beta_3) (g + beta_2 d)²
        u = (m / (1 - beta_1^t) + beta_2 n / (1 - beta_2^t)) / (sqrt(v / (1 - beta_3^t)) + epsilon)
        p <- (p - lr u) / (1 + lr weight_decay)

    Decays are as in Adam, not their complements as in the paper. `variant="optax"`: 1 - beta_2 in the place of both
    factors beta_2 of d and n (0.08 where the paper has 0.92), epsilon also under the root, and p <- p (1 - lr
    weight_decay) - lr u.

    Args:
        beta_1: the decay of `momentum`, the average of gradients.
        beta_2: the decay of `difference`, the average of differences of gradients.
        beta_3: the decay of `velocity`, the average of squares.
        epsilon: a constant added to the denominator, so that it is not 0.
    """

    variants: ClassVar = ("authors", "optax")

    learning_rate: Rate = 1e-3
    beta_1: Decay = 0.98
    beta_2: Decay = 0.92
    beta_3: Decay = 0.99
    epsilon: Amount = 1e-8

    class State(NamedTuple):
        momentum: Signed
        difference: Signed
        velocity: NonNegative
        gradient: Signed

    def decoupled(self, weight_decay: Any) -> Any:
        return weight_decay if self.variant == "optax" else None

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        g = squarable(g, 3)
        optax = self.variant == "optax"
        ahead = 1 - self.beta_2 if optax else self.beta_2
        d = jnp.where(at.t == 1, 0, g - s.gradient)
        m = ema(s.momentum, g, self.beta_1)
        n = ema(s.difference, d, self.beta_2)
        v = ema(s.velocity, square(g + ahead * d), self.beta_3)
        u = m / (1 - self.beta_1**at.t) + ahead * n / (1 - self.beta_2**at.t)
        u = u / (root(v / (1 - self.beta_3**at.t) + (self.epsilon if optax else 0)) + self.epsilon)
        step, s = -at.lr * u, self.State(m, n, v, g)
        if optax or at.weight_decay is None:
            return step, s
        shrink = at.lr * at.weight_decay
        return (step - shrink * p) / (1 + shrink), s
