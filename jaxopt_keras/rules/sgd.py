"""SGD: stochastic gradient descent, with momentum."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.rule import Clock, Momentum, Rate, Rule, Signed


class SGD(Rule):
    """Stochastic gradient descent (Robbins & Monro 1951), with heavy-ball or Nesterov momentum.

        v <- momentum v - lr g
        p <- p + v                      nesterov: p <- p + momentum v - lr g

    Sutskever et al. 2013. `variant="optax"` keeps the rate out of the velocity (v <- momentum v + g; p <- p - lr v),
    which differs once the rate changes.

    Args:
        momentum: the decay of the velocity; 0: no velocity is kept.
        nesterov: apply the momentum ahead of the step.
    """

    learning_rate: Rate = 0.01
    momentum: Momentum = 0.0
    nesterov: bool = False

    class State(NamedTuple):
        momentum: Signed | None = None

    def init(self, p: Array) -> State:
        return self.State(jnp.zeros_like(p) if self.momentum else None)

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        if s.momentum is None:
            return -at.lr * g, s
        inside, outside = (1, -at.lr) if self.variant == "optax" else (-at.lr, 1)
        v = self.momentum * s.momentum + inside * g
        step = self.momentum * v + inside * g if self.nesterov else v
        return outside * step, self.State(v)
