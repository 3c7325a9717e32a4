"""The exponential moving average of the parameters (Polyak & Juditsky 1992), as in Keras."""

from typing import Any

import jax.numpy as jnp
from jax import Array

AVERAGE = "average"


def stage(
    params: list[Array], averages: list[Any], beta: Any, frequency: int | None, step: Array
) -> tuple[list[Array], list[Array]]:
    """Update the averages: a <- beta a + (1 - beta) p, and every `frequency` updates p <- a. Return both.

    At the first update a <- p, so that the initial value has no weight. `step` counts the updates before this one.
    """

    def averaged(p: Array, a: Array) -> Array:
        rate = jnp.where(step == 0, 1, 1 - beta).astype(p.real.dtype)
        return a + rate * (p - a)

    averages = [averaged(p, a) for p, a in zip(params, averages, strict=True)]
    if frequency:
        now = (step + 1) % frequency == 0
        params = [jnp.where(now, a, p) for p, a in zip(params, averages, strict=True)]
    return params, averages
