"""D-Adaptation for AdamW: the distance to the solution, estimated from all gradients, is the rate."""

import math
from typing import Annotated, Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import ema, root, squarable, square
from jaxopt_keras.language.rule import Amount, Clock, Decay, Exact, NonNegative, Rate, Rule, Signed, Within


class DAdaptAdamW(Rule):
    """AdamW with D-Adaptation (Defazio & Mishchenko 2023, arXiv:2301.07733).

        r = d lr                use_bias_correction: r = d lr sqrt(1 - beta_2^t) / (1 - beta_1^t)
        b = sqrt(beta_2)        h = s / (sqrt(v) + epsilon)
        N <- b N + (1 - b) r A                  A: the sum of g h over all arrays
        m <- beta_1 m + (1 - beta_1) r g        v <- beta_2 v + (1 - beta_2) g²
        s <- b s + (1 - b) r g                  B: the sum of |s| over all arrays
        D = N / ((1 - b) B)
        d <- max(d, D)                          growth_rate: d <- max(d, min(D, growth_rate d))
        p <- p - m / (sqrt(v) + epsilon) - r weight_decay p

    d starts as d0, and stays while B is 0. `learning_rate` is a factor of the estimate: 1, or a schedule of 1 and less.
    `state.scalars["distance"]` is d.

    `variant="optax"`: the bias correction is always on.

    Args:
        beta_1: the decay of `momentum`, the average of steps before they are divided.
        beta_2: the decay of `velocity`, the average of squared gradients.
        epsilon: a constant added to the denominator, so that it is not 0.
        use_bias_correction: correct the rate for the zeros from which the averages start.
        d0: the first estimate of the distance, far too small.
        growth_rate: the greatest factor by which d grows in a step. None: no limit.
    """

    variants: ClassVar = ("authors", "optax")
    complex_ok: ClassVar = False

    learning_rate: Rate = 1.0
    beta_1: Decay = 0.9
    beta_2: Decay = 0.999
    epsilon: Amount = 1e-8
    use_bias_correction: bool = False
    d0: Annotated[float, Within(above=0, below=math.inf)] = 1e-6
    growth_rate: Annotated[float, Within(1, below=math.inf)] | None = None

    class State(NamedTuple):
        momentum: Signed
        velocity: NonNegative
        direction: Exact

    class Scalars(NamedTuple):
        distance: Any  # d
        numerator: Any  # N

    class Sums(NamedTuple):
        progress: Array  # A
        length: Array  # B

    def scalars(self) -> Scalars:
        return self.Scalars(self.d0, 0.0)

    def rate(self, at: Clock) -> Array:
        rate = at.before.distance * at.lr
        if self.variant != "optax" and not self.use_bias_correction:
            return rate
        return rate * jnp.sqrt(1 - self.beta_2**at.t) / (1 - self.beta_1**at.t)

    def moved(self, s: State, g: Array, at: Clock) -> Array:
        """Return the next `direction`."""
        return ema(s.direction, self.rate(at) * g, self.beta_2**0.5)

    def share(self, g: Array, p: Array, s: State, at: Clock) -> Sums:
        g = squarable(g)
        progress = g * s.direction / (root(s.velocity) + self.epsilon)
        return self.Sums(jnp.sum(progress), jnp.sum(jnp.abs(self.moved(s, g, at))))

    def advance(self, scalars: Scalars, at: Clock) -> Scalars:
        memory, d, sums = self.beta_2**0.5, scalars.distance, at.sums
        numerator = ema(scalars.numerator, self.rate(at) * sums.progress, memory)
        moves = sums.length != 0  # NaN: it shows
        found = jnp.where(moves, numerator / ((1 - memory) * jnp.where(moves, sums.length, 1)), d)
        if self.growth_rate is not None:
            found = jnp.minimum(found, self.growth_rate * d)
        return self.Scalars(jnp.maximum(d, found), numerator)

    def decoupled(self, weight_decay: Any) -> None:
        return None

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        g, rate = squarable(g), self.rate(at)
        m, v = ema(s.momentum, rate * g, self.beta_1), ema(s.velocity, square(g), self.beta_2)
        step = -m / (root(v) + self.epsilon)
        if at.weight_decay is not None:
            step = step - rate * at.weight_decay * p
        return step, self.State(m, v, self.moved(s, g, at))
