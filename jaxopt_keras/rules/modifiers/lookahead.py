"""Lookahead: after some steps, the weights go back to a point between where they were and where they are."""

from typing import Annotated, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.clock import Clock
from jaxopt_keras.language.fields import Within
from jaxopt_keras.language.modifier import Modifier
from jaxopt_keras.language.nested import Both
from jaxopt_keras.language.rule import Exact


class Lookahead(Modifier):
    """Lookahead (Zhang et al. 2019, arXiv:1907.08610), around any rule.

        p <- p + u                                      u: the step of the rule inside
        every la_steps updates: s <- s + la_alpha (p - s), and p <- s, where s starts as the parameter

    `averaged` is s, the slow weights. The slots of the rule inside stay as they are.

    Args:
        la_steps: the number of updates after which the weights go back.
        la_alpha: how far the slow weights go towards the others: 0, not at all, to 1, all the way.
    """

    la_steps: Annotated[int, Within(1)] = 5
    la_alpha: Annotated[float, Within(0, 1)] = 0.8

    class State(NamedTuple):
        slow: Exact

    def start(self, p: Array) -> State:
        return self.State(p)

    def update(self, g: Array, p: Array, s: Both, at: Clock) -> tuple[Array, Both]:
        step, s = self.within(g, p, s, at)
        slow = s.own.slow
        now = at.t % self.la_steps == 0
        slow = jnp.where(now, slow + self.la_alpha * (p + step - slow), slow)
        return jnp.where(now, slow - p, step), s._replace(own=self.State(slow))

    def averaged(self, p: Array, s: Both) -> Array:
        return s.own.slow
