"""LARS: momentum with a rate for each array, in units of the array."""

from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.rule import Amount, Clock, Decay, Rate, Rule, Signed


class LARS(Rule):
    """LARS, "layer-wise adaptive rate scaling" (You, Gitman & Ginsburg 2017, arXiv:1708.03888).

        l = trust_coefficient |p| / (|g| + weight_decay |p| + epsilon)          l is 1 where |p| or |g| is 0
        v <- momentum v + lr l (g + weight_decay p)
        p <- p - v                      nesterov: p <- p - (momentum v + lr l (g + weight_decay p))

    `variant="optax"`: |g + weight_decay p| + epsilon is the divisor of l (its default there: 0).

    Args:
        momentum: the decay of the velocity.
        trust_coefficient: the length of a step before momentum, for a rate of 1, in units of the parameter's norm.
        epsilon: a constant added to the norm of gradients.
        nesterov: apply the momentum ahead of the step.
    """

    variants: ClassVar = ("authors", "optax")
    grain: ClassVar = "leaf"

    learning_rate: Rate = 1.0
    momentum: Decay = 0.9
    trust_coefficient: Amount = 0.001
    epsilon: Amount = 1e-8
    nesterov: bool = False

    class State(NamedTuple):
        momentum: Signed

    def decoupled(self, weight_decay: Any) -> Any:
        return None

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        decay = 0 if at.weight_decay is None else at.weight_decay
        u = g + decay * p
        length = at.norm(p)
        slope = at.norm(u) if self.variant == "optax" else at.norm(g)
        divisor = slope + self.epsilon + (0 if self.variant == "optax" else decay * length)
        usable = (length > 0) & (slope > 0)
        # The gradient is divided first: a trust ratio for a gradient of 1e37 would be subnormal.
        u = at.lr * jnp.where(usable, self.trust_coefficient * length, 1) * (u / jnp.where(usable, divisor, 1))
        v = self.momentum * s.momentum + u
        return -(self.momentum * v + u if self.nesterov else v), self.State(v)
