"""Schedule-free AdamW: an average of iterates instead of a schedule."""

from dataclasses import field
from typing import Annotated, Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import ema, root, squarable, square
from jaxopt_keras.language.rule import (
    COMPLEMENT,
    Amount,
    Clock,
    Count,
    Decay,
    EpsRoot,
    Exact,
    NonNegative,
    Rate,
    Rule,
    Within,
)


class ScheduleFreeAdamW(Rule):
    """Schedule-free AdamW (Defazio et al. 2024, arXiv:2405.15682).

        lr <- lr min(t / warmup_steps, 1)
        v <- beta_2 v + (1 - beta_2) g²
        x = (y - (1 - beta_1) z) / beta_1               z starts as the parameter
        z <- z - lr g / (sqrt(v / (1 - beta_2^t)) + epsilon)
        x <- (1 - c) x + c z,  c = 1 / t
        y <- (1 - beta_1) z + beta_1 x

    The parameter is y during training, z is the slot `momentum`, and x, the value to evaluate, is `averaged`.

    `variant="optax"`: c = w / (the sum of all w so far), w = (the greatest rate so far)²; the rate of z warms up from
    0, one step later; weight decay is applied to z, as lr weight_decay y.

    x is computed from y and z, so that rounding errors of y accumulate in x. A parameter of 16 bits therefore has
    `master_weights="float32"` by default.

    Args:
        beta_1: the weight of x, the average of iterates, in y, the parameter.
        beta_2: the decay of `velocity`, the average of squared gradients.
        epsilon: a constant added to the denominator, so that it is not 0.
        warmup_steps: the number of updates over which the rate grows linearly.
        eps_root: a constant added to the bias-corrected `velocity`, under the root.
    """

    defaults: ClassVar = {"master_weights": "float32"}

    learning_rate: Rate = 0.0025
    beta_1: Annotated[float, Within(high=1, above=0), COMPLEMENT] = 0.9
    beta_2: Decay = 0.999
    epsilon: Amount = 1e-8
    warmup_steps: Count = 0
    eps_root: EpsRoot = field(default=0.0, kw_only=True)

    class State(NamedTuple):
        momentum: Exact
        velocity: NonNegative

    class Scalars(NamedTuple):
        max_rate: Any
        weight_sum: Any

    def init(self, p: Array) -> State:
        return self.State(p, jnp.zeros_like(p.real))

    def scalars(self) -> Scalars | None:
        return self.Scalars(0.0, 0.0) if self.variant == "optax" else None

    def advance(self, scalars: Scalars, at: Clock) -> Scalars:
        max_rate = jnp.maximum(scalars.max_rate, at.lr * self.warmth(at.t))
        return self.Scalars(max_rate, scalars.weight_sum + max_rate**2)

    def warmth(self, t: Any) -> Any:
        return jnp.minimum(t / self.warmup_steps, 1) if self.warmup_steps else 1

    def decoupled(self, weight_decay: Any) -> Any:
        return None if self.variant == "optax" else weight_decay

    def averaged(self, p: Array, s: State) -> Array:
        """Return the weights to evaluate."""
        return (p - (1 - self.beta_1) * s.momentum) / self.beta_1

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        g = squarable(g)
        v = ema(s.velocity, square(g), self.beta_2)
        u = g / (root(v / (1 - self.beta_2**at.t) + self.eps_root) + self.epsilon)
        if self.variant == "optax":
            if at.weight_decay is not None:
                u = u + at.weight_decay * p
            rate, total = at.lr * self.warmth(at.t - 1), at.scalars.weight_sum
            c = at.scalars.max_rate**2 / jnp.where(total > 0, total, 1)  # c is 0 while every rate was 0
        else:
            rate, c = at.lr * self.warmth(at.t), 1 / at.t
        z = s.momentum - rate * u
        x = self.averaged(p, s)
        x = x + c * (z - x)
        return ema(x, z, self.beta_1) - p, self.State(z, v)
