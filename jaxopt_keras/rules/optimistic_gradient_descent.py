"""Optimistic gradient descent: the change of the gradient is expected to go on."""

from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.rule import Clock, Number, Rate, Rule, Signed


class OptimisticGradientDescent(Rule):
    """Optimistic gradient descent (Mokhtari, Ozdaglar & Pattathil 2019, arXiv:1901.08511), for games of min and max.

        p <- p - lr (alpha g + beta (g - h))            h: the last gradient; in the first update g

    Args:
        alpha: the factor of the gradient.
        beta: the factor of its change.
    """

    variants: ClassVar = ("optax",)

    learning_rate: Rate = 1e-3
    alpha: Number = 1.0
    beta: Number = 1.0

    class State(NamedTuple):
        last_gradient: Signed

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        last = jnp.where(at.t == 1, g, s.last_gradient)
        return -at.lr * ((self.alpha + self.beta) * g - self.beta * last), self.State(g)
