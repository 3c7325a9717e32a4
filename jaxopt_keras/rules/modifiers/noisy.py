"""Noise in gradients, which falls with time."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.clock import Clock
from jaxopt_keras.language.fields import Amount
from jaxopt_keras.language.modifier import Modifier
from jaxopt_keras.language.nested import Both


class Noisy(Modifier):
    """Gradient noise (Neelakantan et al. 2015, arXiv:1511.06807), around any rule.

        g <- g + n                      n: normal numbers of the variance eta / t^gamma
        p <- p + u                      u: the step of the rule inside for this gradient

    The numbers are drawn anew for each array and update, from the option `seed`: a repeated step draws the same ones.

    Args:
        eta: the variance of the noise at the first update.
        gamma: the power of the step by which the variance falls.
    """

    takes: ClassVar[Any] = property(lambda self: ("key", *self.inner.takes))
    keeps_steps: ClassVar = True

    eta: Amount = 0.01
    gamma: Amount = 0.55

    def update(self, g: Array, p: Array, s: Both, at: Clock) -> tuple[Array, Both]:
        noise = jax.random.normal(at.key, g.shape, g.dtype)
        return self.within(g + jnp.sqrt(self.eta / at.t**self.gamma) * noise, p, s, at)
