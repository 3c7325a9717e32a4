"""Adagrad: gradients divided by the root of the sum of all their squares."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import squarable, square
from jaxopt_keras.language.rule import Amount, Clock, Exact, Rate, Rule


class Adagrad(Rule):
    """Adagrad (Duchi, Hazan & Singer 2011).

        n <- n + g²                     n starts as initial_accumulator_value
        p <- p - lr g / sqrt(n + epsilon)

    `variant="optax"` is the same.

    Args:
        initial_accumulator_value: the initial sum of squared gradients.
        epsilon: a constant added to this sum under the root.
    """

    learning_rate: Rate = 1e-3
    initial_accumulator_value: Amount = 0.1
    epsilon: Amount = 1e-7

    class State(NamedTuple):
        accumulator: Exact

    def init(self, p: Array) -> State:
        return self.State(jnp.full_like(p.real, self.initial_accumulator_value))

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        g = squarable(g)
        n = s.accumulator + square(g)
        return -at.lr * g / jnp.sqrt(n + self.epsilon), self.State(n)
