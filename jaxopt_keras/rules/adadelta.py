"""Adadelta: steps in the units of the parameter."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import ema, squarable, square
from jaxopt_keras.language.rule import Amount, Clock, Decay, NonNegative, Rate, Rule


class Adadelta(Rule):
    """Adadelta (Zeiler 2012, arXiv:1212.5701).

        a <- rho a + (1 - rho) g²
        u = sqrt(d + epsilon) / sqrt(a + epsilon) g
        d <- rho d + (1 - rho) u²
        p <- p - lr u

    The paper has lr = 1. `variant="optax"` adds weight decay to the gradient (g <- g + weight_decay p) instead of the
    decoupled one.

    Args:
        rho: the decay of both averages of squares.
        epsilon: a constant added to both averages under the roots.
    """

    learning_rate: Rate = 1e-3
    rho: Decay = 0.95
    epsilon: Amount = 1e-7

    class State(NamedTuple):
        accumulated_grad: NonNegative
        accumulated_delta_var: NonNegative

    def decoupled(self, weight_decay: Any) -> Any:
        return None if self.variant == "optax" else weight_decay

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        g = squarable(g)
        if self.variant == "optax" and at.weight_decay is not None:
            g = g + at.weight_decay * p
        a = ema(s.accumulated_grad, square(g), self.rho)
        u = jnp.sqrt(s.accumulated_delta_var + self.epsilon) / jnp.sqrt(a + self.epsilon) * g
        return -at.lr * u, self.State(a, ema(s.accumulated_delta_var, square(u), self.rho))
