"""MARS: AdamW on gradients whose variance the last gradient reduces."""

from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import ema, squarable, square
from jaxopt_keras.language.rule import Amount, Clock, Decay, NonNegative, Rate, Rule, Signed
from jaxopt_keras.rules.orthogonal.fallback import AdamPart


class MARSAdamW(Rule):
    """MARS-AdamW (Yuan et al. 2024, arXiv:2411.10438), in its approximate form, which needs one gradient a step.

        c = g + gamma beta_1 / (1 - beta_1) (g - h)             h is the last gradient, the slot `gradient`; 0 at first
        c <- c / max(1, |c|)
        m <- beta_1 m + (1 - beta_1) c          v <- beta_2 v + (1 - beta_2) c²
        p <- p (1 - lr weight_decay) - lr m / (1 - beta_1^t) / (sqrt(v / (1 - beta_2^t)) + epsilon)

    Parameters that are not matrices are updated by AdamW, with `adam_beta_1`, `adam_beta_2` and `adam_weight_decay`, at
    the rate `lr adam_lr_ratio`.

    Args:
        beta_1: the decay of `momentum`, the average of corrected gradients.
        beta_2: the decay of `velocity`, the average of their squares.
        epsilon: a constant added to the denominator, so that it is not 0.
        gamma: the strength of the correction; 0: none.
        adam_beta_1: `beta_1` of AdamW, for the parameters that are not matrices.
        adam_beta_2: `beta_2` of AdamW.
        adam_weight_decay: the weight decay of the parameters that AdamW updates.
        adam_lr_ratio: the rate of AdamW, in units of the rate.
    """

    variants: ClassVar = ("authors",)
    grain: ClassVar = "leaf"

    learning_rate: Rate = 3e-3
    beta_1: Decay = 0.95
    beta_2: Decay = 0.99
    epsilon: Amount = 1e-8
    gamma: Amount = 0.025
    adam_beta_1: Decay = 0.9
    adam_beta_2: Decay = 0.95
    adam_weight_decay: Amount | None = 0.1
    adam_lr_ratio: Amount = 1.0

    class State(NamedTuple):
        momentum: Signed
        velocity: NonNegative
        gradient: Signed

    def accepts(self, path: str, p: Array) -> bool:
        return p.ndim == 2

    @property
    def fallback(self) -> Rule:
        values = {"beta_1": self.adam_beta_1, "beta_2": self.adam_beta_2, "epsilon": self.epsilon}
        values |= {"ratio": self.adam_lr_ratio, "weight_decay": self.adam_weight_decay}
        return AdamPart(variant="optax").bind(values)

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        g = squarable(g)
        c = g + self.gamma * (self.beta_1 * (g - s.gradient) / (1 - self.beta_1))
        c = c / jnp.maximum(1, at.norm(c))
        m = ema(s.momentum, c, self.beta_1)
        v = ema(s.velocity, square(c), self.beta_2)
        u = m / (1 - self.beta_1**at.t) / (jnp.sqrt(v / (1 - self.beta_2**at.t)) + self.epsilon)
        return -at.lr * u, self.State(m, v, g)
