"""LAMB: Adam's direction, scaled to the norm of each array."""

from dataclasses import field
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import ema, root, squarable, square
from jaxopt_keras.language.rule import Amount, Clock, Decay, EpsRoot, NonNegative, Rate, Rule, Signed


class Lamb(Rule):
    """LAMB (You et al. 2019, arXiv:1904.00962).

        m <- beta_1 m + (1 - beta_1) g          v <- beta_2 v + (1 - beta_2) g²
        u = m / (1 - beta_1^t) / (sqrt(v / (1 - beta_2^t)) + epsilon)
        p <- p - lr |p| / |u| u                 the ratio is 1 where either norm is 0

    Weight decay shrinks p first, outside the ratio. `variant="optax"`, as the paper: u <- u + weight_decay p inside.

    Args:
        beta_1: the decay of `momentum`, the average of gradients.
        beta_2: the decay of `velocity`, the average of squared gradients.
        epsilon: a constant added to the denominator, so that it is not 0.
        eps_root: a constant added to the bias-corrected `velocity`, under the root.
    """

    grain: ClassVar = "leaf"

    learning_rate: Rate = 1e-3
    beta_1: Decay = 0.9
    beta_2: Decay = 0.999
    epsilon: Amount = 1e-7
    eps_root: EpsRoot = field(default=0.0, kw_only=True)

    class State(NamedTuple):
        momentum: Signed
        velocity: NonNegative

    def decoupled(self, weight_decay: Any) -> Any:
        return None if self.variant == "optax" else weight_decay

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        g = squarable(g)
        m = ema(s.momentum, g, self.beta_1)
        v = ema(s.velocity, square(g), self.beta_2)
        u = m / (1 - self.beta_1**at.t) / (root(v / (1 - self.beta_2**at.t) + self.eps_root) + self.epsilon)
        if self.variant == "optax" and at.weight_decay is not None:
            u = u + at.weight_decay * p
        p_norm, u_norm = at.norm(p), at.norm(u)
        usable = (p_norm > 0) & (u_norm > 0)
        ratio = jnp.where(usable, p_norm / jnp.where(usable, u_norm, 1), 1)
        return -at.lr * ratio * u, self.State(m, v)
