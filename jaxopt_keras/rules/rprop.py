"""Rprop: a step size for each element, which grows while its gradient keeps its sign."""

from typing import Annotated, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.rule import Amount, Clock, Exact, Rate, Rule, Signed, Within


class Rprop(Rule):
    """Rprop, "resilient backpropagation" (Riedmiller & Braun 1993), for gradients of all the data.

        s = sign(g) h                           h is the last sign, the slot `direction`
        d <- clip(d eta_plus, min_step_size, max_step_size) if s is 1, with eta_minus if s is -1
        h <- sign(g), but 0 if s is -1
        p <- p - d h

    d starts as the learning rate: a schedule has no effect after the first update. `variant="optax"`: d h of the update
    before, or 0 if s is -1, is subtracted from p: each step is one update late, as in optax 0.2.8.

    Args:
        learning_rate: the first size of every step, `step_size`.
        eta_minus: the factor of a step whose gradient has changed its sign.
        eta_plus: the factor of a step whose gradient has kept its sign.
        min_step_size: the least step.
        max_step_size: the greatest step.
    """

    variants: ClassVar = ("authors", "optax")
    complex_ok: ClassVar = False

    learning_rate: Rate = 0.01
    eta_minus: Annotated[float, Within(0, 1)] = 0.5
    eta_plus: Amount = 1.2
    min_step_size: Amount = 1e-6
    max_step_size: Amount = 50.0

    class State(NamedTuple):
        direction: Signed
        step_size: Exact

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        sign = jnp.sign(g)
        same = sign * s.direction
        factor = jnp.where(same > 0, self.eta_plus, self.eta_minus)
        changed = jnp.clip(s.step_size * factor, self.min_step_size, self.max_step_size)
        size = jnp.where(at.t == 1, at.lr, jnp.where(same == 0, s.step_size, changed))
        direction = jnp.where(same < 0, 0, sign)
        if self.variant == "optax":
            return -jnp.where(same < 0, 0, s.step_size * s.direction), self.State(direction, size)
        return -size * direction, self.State(direction, size)
