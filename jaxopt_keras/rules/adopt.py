"""ADOPT: Adam whose divisor does not know the gradient that it divides."""

from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import ema, root, squarable, square
from jaxopt_keras.language.rule import Amount, Clock, Decay, NonNegative, Rate, Rule, Signed


class ADOPT(Rule):
    """ADOPT (Taniguchi et al. 2024, arXiv:2411.02853), which converges for every beta_2.

        the first update: v <- g², and p stays
        later: n = clip(g / max(sqrt(v), epsilon), -c, c),  c = (t - 1)^0.25
               m <- beta_1 m + (1 - beta_1) n
               p <- p (1 - lr weight_decay) - lr m
               v <- beta_2 v + (1 - beta_2) g²

    `variant="optax"` is the same, but for weight decay, which optax applies in the first update too.

    Args:
        beta_1: the decay of `momentum`, the average of normalized gradients.
        beta_2: the decay of `velocity`, the average of squared gradients.
        epsilon: the least divisor.
    """

    variants: ClassVar = ("authors", "optax")
    complex_ok: ClassVar = False

    learning_rate: Rate = 1e-3
    beta_1: Decay = 0.9
    beta_2: Decay = 0.9999
    epsilon: Amount = 1e-6

    class State(NamedTuple):
        momentum: Signed
        velocity: NonNegative

    def decoupled(self, weight_decay: Any) -> Any:
        return weight_decay if self.variant == "optax" else None

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        g, is_first = squarable(g), at.t == 1
        limit = (at.t - 1) ** 0.25
        n = jnp.clip(g / jnp.maximum(root(s.velocity), self.epsilon), -limit, limit)
        m = ema(s.momentum, n, self.beta_1)
        v = jnp.where(is_first, square(g), ema(s.velocity, square(g), self.beta_2))
        step = -at.lr * m
        if at.weight_decay is not None and self.variant != "optax":
            step = step - jnp.where(is_first, 0, at.lr * at.weight_decay) * p
        return step, self.State(m, v)
