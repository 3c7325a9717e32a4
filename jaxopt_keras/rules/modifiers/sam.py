"""SAM: the gradient is taken where the loss is greatest nearby, so that minima are flat."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.clock import Clock
from jaxopt_keras.language.fields import Amount
from jaxopt_keras.language.modifier import Modifier
from jaxopt_keras.language.nested import Both
from jaxopt_keras.language.numerics import squarable, square
from jaxopt_keras.language.second import Looking

EPS = 1e-12  # of the public implementations


class SAM(Looking, Modifier):
    """Sharpness-aware minimization (Foret et al. 2021, arXiv:2010.01412), around any rule.

        e = rho g / (norm(g) + 1e-12)           the norm over all arrays
        g <- the gradient at p + e
        p <- p + u                              u: the step of the rule inside at p, for this gradient

    Every step must be given the loss function, for the second gradient: `kernel.minimize(loss, params, state, batch)`,
    `kernel.step(params, state, grads, value_fn=loss)`, or in the stateful face `minimize(loss, variables)`. Clipping,
    guards, accumulation and other modifiers see the second gradient. Under `gradient_accumulation_steps` each call
    looks at the loss of its own batch, where its own gradient points.

    Args:
        rho: the distance of the point at which the second gradient is taken.

    Raises:
        ValueError: for a rule inside that takes a second gradient itself.
    """

    rho: Amount = 0.05

    class Sums(NamedTuple):
        squares: Array

    def scale(self, p: Array) -> Any:
        """Return the size of each element, in units of which the distance is measured."""
        return 1

    def reach(self, g: Array, p: Array, s: Both, at: Clock) -> Sums:
        return self.Sums(jnp.sum(square(self.scale(p) * squarable(g))))

    def look(self, g: Array, p: Array, s: Both, at: Clock) -> Array:
        norm = jnp.sqrt(at.sums.squares)
        return p + self.rho / (norm + EPS) * (self.scale(p) ** 2 * squarable(g))

    def seen(self, g: Array, p: Array, s: Both, at: Clock) -> Array:
        return at.second
