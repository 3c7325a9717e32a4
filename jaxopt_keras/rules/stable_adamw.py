"""StableAdamW: AdamW whose rate falls where gradients outgrow their average."""

from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import root, squarable, square
from jaxopt_keras.language.rule import Amount, Clock, Decay, NonNegative, Rate, Rule, Signed


class StableAdamW(Rule):
    """StableAdamW (Wortsman et al. 2023, arXiv:2304.13013): AdamW with Adafactor's clipping of updates.

        b_i = (1 - beta_i) / (1 - beta_i^t),  i = 1, 2
        m <- (1 - b_1) m + b_1 g                v <- (1 - b_2) v + b_2 g²
        r = lr / max(1, rms(g / max(sqrt(v), epsilon)))
        p <- p (1 - r weight_decay) - r m / (sqrt(v) + epsilon)

    The norm is that of each array, so that one layer's spike slows that layer alone. It needs no clipping of gradients.

    Args:
        beta_1: the decay of `momentum`, the average of gradients; its bias is corrected inside.
        beta_2: the decay of `velocity`, the average of squared gradients; its bias is corrected inside.
        epsilon: a constant added to the denominator, and the least divisor inside rms.
    """

    variants: ClassVar = ("authors",)
    grain: ClassVar = "leaf"
    defaults: ClassVar = {"weight_decay": 0.01}

    learning_rate: Rate = 1e-3
    beta_1: Decay = 0.9
    beta_2: Decay = 0.99
    epsilon: Amount = 1e-6

    class State(NamedTuple):
        momentum: Signed
        velocity: NonNegative

    def decoupled(self, weight_decay: Any) -> Any:
        return None

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        g = squarable(g)
        m = s.momentum + (1 - self.beta_1) / (1 - self.beta_1**at.t) * (g - s.momentum)
        v = s.velocity + (1 - self.beta_2) / (1 - self.beta_2**at.t) * (square(g) - s.velocity)
        rate = at.lr / jnp.maximum(1, at.rms(g / jnp.maximum(root(v), self.epsilon)))
        u = m / (root(v) + self.epsilon)
        if at.weight_decay is not None:
            u = u + at.weight_decay * p
        return -rate * u, self.State(m, v)
