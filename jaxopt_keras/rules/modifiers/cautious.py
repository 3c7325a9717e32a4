"""Cautious updates: no element of a step goes against its gradient."""

from typing import Annotated, ClassVar

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.clock import Clock
from jaxopt_keras.language.fields import Within
from jaxopt_keras.language.modifier import Modifier
from jaxopt_keras.language.nested import Both


class Cautious(Modifier):
    """Cautious update (Liang et al. 2024, arXiv:2411.16085), around any rule.

        u = the step of the rule inside
        a = 1 where u g < 0, else 0
        p <- p + u a / max(mean(a), least)

    The mean is over the array. Weight decay that the pipeline applies is not masked.

    Args:
        least: the least share of elements that counts, so that a step of few elements is not enlarged without limit.
    """

    needs: ClassVar = "leaf"

    least: Annotated[float, Within(high=1, above=0)] = 1e-3

    def update(self, g: Array, p: Array, s: Both, at: Clock) -> tuple[Array, Both]:
        step, s = self.within(g, p, s, at)
        agrees = jnp.where((step * g.conj()).real < 0, jnp.ones_like(g.real), 0)
        return step * (agrees / jnp.maximum(at.mean(agrees), self.least)), s
