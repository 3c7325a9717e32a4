"""Prodigy: Adam that finds its own rate."""

import math
from typing import Annotated, Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import ema, root, squarable, square
from jaxopt_keras.language.rule import Amount, Clock, Decay, Exact, NonNegative, Rate, Rule, Signed, Within

Positive = Annotated[float, Within(above=0, below=math.inf)]


class Prodigy(Rule):
    """Prodigy (Mishchenko & Defazio 2023, arXiv:2306.06101): Adam with an estimate d of the distance to the solution.

        r = d lr                use_bias_correction: r = d lr sqrt(1 - beta_2^t) / (1 - beta_1^t)
        m <- beta_1 m + (1 - beta_1) d g        v <- beta_2 v + (1 - beta_2) d² g²
        s <- beta_3 s + (d / d0) r g            safeguard_warmup: s <- beta_3 s + (d / d0) d g
        N <- beta_3 N + (d / d0) r A            A and B: the sums of g (p_0 - p) and of |s| over all arrays
        D = d_coef N / B
        M <- max(M, D)          d <- M          growth_rate: d <- min(M, growth_rate d)
        p <- p - r (m / (sqrt(v) + d epsilon) + weight_decay p)

    d and M start as d0, p_0 is the initial parameter, and while B is 0, d stays. `learning_rate` is a factor of
    the estimate: 1, or a schedule of 1 and less. `state.scalars["distance"]` is d.

    `variant="optax"`: the bias correction is always on.

    Args:
        beta_1: the decay of `momentum`, the average of gradients.
        beta_2: the decay of `velocity`, the average of squared gradients.
        beta_3: the decay of s and N, from which the distance is estimated. None: sqrt(beta_2).
        epsilon: a constant added to the denominator, in units of d.
        use_bias_correction: correct the rate for the zeros from which the averages start.
        safeguard_warmup: leave the rate out of s, for schedules that warm up.
        d0: the first estimate of the distance, far too small.
        d_coef: a factor of the estimate: 0.5 or 2 for smaller or greater steps.
        growth_rate: the greatest factor by which d grows in a step, from the second growth on. None: no limit.
    """

    variants: ClassVar = ("authors", "optax")
    complex_ok: ClassVar = False

    learning_rate: Rate = 1.0
    beta_1: Decay = 0.9
    beta_2: Decay = 0.999
    beta_3: Decay | None = None
    epsilon: Amount = 1e-8
    use_bias_correction: bool = False
    safeguard_warmup: bool = False
    d0: Positive = 1e-6
    d_coef: Positive = 1.0
    growth_rate: Annotated[float, Within(1, below=math.inf)] | None = None

    class State(NamedTuple):
        momentum: Signed
        velocity: NonNegative
        start: Exact
        direction: Exact

    class Scalars(NamedTuple):
        distance: Any  # d
        greatest: Any  # d_max
        numerator: Any  # N

    class Sums(NamedTuple):
        towards: Array  # <g, p_0 - p>
        length: Array  # |s|_1

    def init(self, p: Array) -> State:
        zeros = jnp.zeros_like(p)
        return self.State(zeros, zeros, p, zeros)

    def scalars(self) -> Scalars:
        return self.Scalars(self.d0, self.d0, 0.0)

    @property
    def memory(self) -> Any:
        return self.beta_2**0.5 if self.beta_3 is None else self.beta_3

    def rate(self, d: Array, at: Clock) -> Array:
        if self.variant != "optax" and not self.use_bias_correction:
            return d * at.lr
        return d * at.lr * jnp.sqrt(1 - self.beta_2**at.t) / (1 - self.beta_1**at.t)

    def moved(self, s: State, g: Array, d: Array, at: Clock) -> Array:
        """Return the next `direction`."""
        return self.memory * s.direction + d / self.d0 * (d if self.safeguard_warmup else self.rate(d, at)) * g

    def share(self, g: Array, p: Array, s: State, at: Clock) -> Sums:
        direction = self.moved(s, squarable(g), at.scalars.distance, at)
        return self.Sums(jnp.sum(squarable(g) * (s.start - p)), jnp.sum(jnp.abs(direction)))

    def advance(self, scalars: Scalars, at: Clock) -> Scalars:
        d, sums = scalars.distance, at.sums
        moves = sums.length != 0  # NaN: it shows
        numerator = self.memory * scalars.numerator + d / self.d0 * self.rate(d, at) * sums.towards
        found = jnp.where(moves, self.d_coef * numerator / jnp.where(moves, sums.length, 1), d)
        greatest = jnp.maximum(scalars.greatest, found)
        new = greatest
        if self.growth_rate is not None:
            first = jnp.where(d == self.d0, jnp.maximum(d, found), d)
            new = jnp.minimum(greatest, first * self.growth_rate)
        return self.Scalars(new, greatest, numerator)

    def decoupled(self, weight_decay: Any) -> None:
        return None

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        g, d = squarable(g), at.before.distance
        m, v = ema(s.momentum, d * g, self.beta_1), ema(s.velocity, square(d * g), self.beta_2)
        u = m / (root(v) + at.scalars.distance * self.epsilon)
        if at.weight_decay is not None:
            u = u + at.weight_decay * p
        return -self.rate(d, at) * u, self.State(m, v, s.start, self.moved(s, g, d, at))
