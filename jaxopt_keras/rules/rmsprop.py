"""RMSprop: gradients divided by a running root mean square."""

from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import ema, squarable, square
from jaxopt_keras.language.rule import Amount, Clock, Decay, KerasOrder, Momentum, NonNegative, Rate, Rule, Signed


class RMSprop(Rule):
    """RMSprop (Tieleman & Hinton 2012, lecture 6.5), with optional momentum and centering.

        n <- rho n + (1 - rho) g²
        centered: a <- rho a + (1 - rho) g,  d = n - a² + epsilon;  else d = n + epsilon
        b <- momentum b + lr g / sqrt(d)
        p <- p - b

    Centered: Graves 2013, arXiv:1308.0850. `variant="optax"` is the same (its `eps_in_sqrt=True`).

    Args:
        rho: the decay of `velocity`, the average of squared gradients.
        momentum: the decay of the sum of steps; 0: no such slot.
        epsilon: a constant added to the average under the root.
        centered: divide by the standard deviation of gradients, not by their root mean square.
    """

    keras: ClassVar = KerasOrder(slot_groups=(("velocity",), ("momentum",), ("average_gradient",)))

    learning_rate: Rate = 1e-3
    rho: Decay = 0.9
    momentum: Momentum = 0.0
    epsilon: Amount = 1e-7
    centered: bool = False

    class State(NamedTuple):
        velocity: NonNegative
        momentum: Signed | None
        average_gradient: Signed | None

    def init(self, p: Array) -> State:
        zeros = jnp.zeros_like(p)
        return self.State(jnp.zeros_like(p.real), zeros if self.momentum else None, zeros if self.centered else None)

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        g = squarable(g)
        n, a = ema(s.velocity, square(g), self.rho), s.average_gradient
        d = n + self.epsilon
        if a is not None:
            a = ema(a, g, self.rho)
            d = jnp.maximum(d - square(a), self.epsilon)  # rounding of n and a can make the difference negative
        b = at.lr * g / jnp.sqrt(d)
        if s.momentum is None:
            return -b, self.State(n, None, a)
        b = self.momentum * s.momentum + b
        return -b, self.State(n, b, a)
