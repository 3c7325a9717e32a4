"""FTRL-proximal: the parameter is recomputed from sums in each step, and L1 makes it exactly zero."""

from typing import Annotated, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import squarable
from jaxopt_keras.language.rule import Amount, Clock, Exact, Fixed, KerasOrder, Rate, Rule, Within


class Ftrl(Rule):
    """ "Follow the regularized leader", proximal form (McMahan et al. 2013, "Ad click prediction").

        l2 = l2_regularization_strength + beta / (2 lr),  k = -learning_rate_power
        n' = n + g²                     n starts as initial_accumulator_value
        z <- z + g + 2 l2_shrinkage_regularization_strength p - (n'^k - n^k) / lr p
        p <- (clip(z, -l1, l1) - z) / (n'^k / lr + 2 l2),  n <- n'

    The initial value of p has no effect after the first update, as in Keras.

    Args:
        learning_rate_power: the power of n in the rate of each element; the usual value is the faster -0.5.
        initial_accumulator_value: the initial n, the sum of squared gradients.
        l1_regularization_strength: l1, the weight of |p|: small parameters become 0.
        l2_regularization_strength: the weight of p² in the objective.
        l2_shrinkage_regularization_strength: the weight of p² in the loss, where its gradient joins g.
        beta: adds beta / (2 lr) to the weight of p² in the objective.
    """

    variants: ClassVar = ("keras",)
    complex_ok: ClassVar = False
    keras: ClassVar = KerasOrder(legacy_interleaved=True)

    learning_rate: Rate = 1e-3
    learning_rate_power: Annotated[float, Within(high=0), Fixed(-0.5)] = -0.5  # fixed: a root costs less than a power
    initial_accumulator_value: Amount = 0.1
    l1_regularization_strength: Amount = 0.0
    l2_regularization_strength: Amount = 0.0
    l2_shrinkage_regularization_strength: Amount = 0.0
    beta: Amount = 0.0

    class State(NamedTuple):
        accumulator: Exact
        linear: Exact

    def init(self, p: Array) -> State:
        return self.State(jnp.full_like(p, self.initial_accumulator_value), jnp.zeros_like(p))

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        g = squarable(g)
        k, l1 = -self.learning_rate_power, self.l1_regularization_strength
        l2 = self.l2_regularization_strength + self.beta / (2 * at.lr)
        n = jnp.minimum(s.accumulator + g * g, jnp.finfo(g.dtype).max)  # no inf - inf of later powers
        power = n**k
        z = s.linear + g + 2 * self.l2_shrinkage_regularization_strength * p
        z = z - (power - s.accumulator**k) / at.lr * p
        proximal = (jnp.clip(z, -l1, l1) - z) / (power / at.lr + 2 * l2)
        return proximal - p, self.State(n, z)
