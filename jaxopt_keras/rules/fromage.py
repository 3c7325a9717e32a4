"""Fromage: steps in proportion to the norm of their array."""

from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.rule import Amount, Clock, Rate, Rule, Stateless


class Fromage(Rule):
    """Fromage, "Frobenius matched gradient descent" (Bernstein et al. 2020, arXiv:2002.03432), in optax's form.

        r = max(norm(p), min_norm) / max(norm(g), min_norm)             r is 1 where either norm is 0
        p <- (p - lr r g) / sqrt(1 + lr²)

    The norms are those of each array. The divisor keeps steps along a sphere from making the array longer.

    Args:
        min_norm: the least norm that counts.
    """

    variants: ClassVar = ("optax",)
    grain: ClassVar = "leaf"

    learning_rate: Rate = 0.01
    min_norm: Amount = 1e-6

    def update(self, g: Array, p: Array, s: Stateless, at: Clock) -> tuple[Array, Stateless]:
        length, slope = (jnp.maximum(at.norm(x), self.min_norm) for x in (p, g))
        usable = (length > 0) & (slope > 0)
        # The gradient is divided first: a ratio for a gradient of 1e37 would be subnormal.
        u = jnp.where(usable, length, 1) * (g / jnp.where(usable, slope, 1))
        shrunk = 1 / jnp.sqrt(1 + at.lr**2)
        return shrunk * (p - at.lr * u) - p, s
