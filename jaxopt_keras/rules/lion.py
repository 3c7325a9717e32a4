"""Lion: the sign of an interpolated momentum."""

from typing import Annotated, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import ema
from jaxopt_keras.language.rule import COMPLEMENT, Clock, Decay, Rate, Rule, Signed, Within


class Lion(Rule):
    """Lion, "evolved sign momentum" (Chen et al. 2023, arXiv:2302.06675).

        p <- p - lr sign(beta_1 m + (1 - beta_1) g)
        m <- beta_2 m + (1 - beta_2) g

    Every element changes by lr: the paper advises a rate 3 to 10 times smaller than AdamW's, and weight decay larger by
    the same factor. `variant="optax"` is the same.

    Args:
        beta_1: the decay of the average whose sign is the step; above 0.
        beta_2: the decay of `momentum`, the average that is kept.
    """

    learning_rate: Rate = 1e-3
    beta_1: Annotated[float, Within(high=1, above=0), COMPLEMENT] = 0.9
    beta_2: Decay = 0.99

    class State(NamedTuple):
        momentum: Signed

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        step = -at.lr * jnp.sign(ema(s.momentum, g, self.beta_1))
        return step, self.State(ema(s.momentum, g, self.beta_2))
