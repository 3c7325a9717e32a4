"""MARS: gradients corrected by their change since the last step."""

from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.clock import Clock
from jaxopt_keras.language.fields import Amount, Decay
from jaxopt_keras.language.modifier import Modifier
from jaxopt_keras.language.nested import Both
from jaxopt_keras.language.numerics import squarable
from jaxopt_keras.language.rule import Exact, Signed
from jaxopt_keras.language.second import Looking


class Mars(Looking, Modifier):
    """Variance reduction of MARS (Yuan et al. 2024, arXiv:2411.10438), around any rule.

        c = g + gamma beta / (1 - beta) (g - h)         h <- g, the last gradient, from 0
        c <- c / max(norm(c), 1)                        with `clip`
        p <- p + u                                      u: the step of the rule inside for the gradient c

    That is the authors' approximate form. With `exact`, h is the gradient of this step's loss at the parameters of the
    last step, and 0 at the first update. Every step must then be given the loss function, for this second gradient:
    `kernel.minimize(loss, params, state, batch)`, `kernel.step(params, state, grads, value_fn=loss)`, or in the
    stateful face `minimize(loss, variables)`. MARS-AdamW in the exact form is `mars(adamw(...), exact=True)`.

    Args:
        gamma: the strength of the correction; 0: none.
        beta: the decay of the momentum in the rule inside: the authors' AdamW has 0.95.
        clip: limit the norm of each array of corrected gradients to 1.
        exact: take a second gradient, at the parameters of the last step.
    """

    needs: ClassVar[Any] = property(lambda self: "leaf" if self.clip else "element")
    keeps_steps: ClassVar = True
    looking: ClassVar[Any] = property(lambda self: self.exact)
    decays: ClassVar[Any] = property(lambda self: self.exact)  # the last parameters are those before any decay

    gamma: Amount = 0.025
    beta: Decay = 0.95
    clip: bool = True
    exact: bool = False

    class State(NamedTuple):
        last_gradient: Signed | None = None
        last_params: Exact | None = None

    def start(self, p: Array) -> State:
        return self.State(None, p) if self.exact else self.State(jnp.zeros_like(p))

    def corrected(self, g: Array, h: Array) -> Array:
        g = squarable(g)
        return g + self.gamma * self.beta / (1 - self.beta) * (g - squarable(h))

    def look(self, g: Array, p: Array, s: Both, at: Clock) -> Array:
        return s.own.last_params

    def seen(self, g: Array, p: Array, s: Both, at: Clock) -> Array:
        return self.corrected(g, jnp.where(at.t == 1, 0, at.second))

    def update(self, g: Array, p: Array, s: Both, at: Clock) -> tuple[Array, Both]:
        c = squarable(g) if self.exact else self.corrected(g, s.own.last_gradient)
        if self.clip:
            c = c / jnp.maximum(at.norm(c), 1)
        step, s = self.within(c, p, s, at)
        return step, s._replace(own=self.State(None, p) if self.exact else self.State(squarable(g)))
