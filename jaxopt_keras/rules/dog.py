"""DoG: SGD whose rate is the distance travelled, over the size of all gradients."""

import math
from typing import Annotated, Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import root, squarable, square
from jaxopt_keras.language.rule import Amount, Clock, Exact, Rate, Rule, Within


class DoG(Rule):
    """Distance over gradients (Ivgi et al. 2023, arXiv:2302.12022).

        g <- g + weight_decay p
        r <- max(r, norm(p - p_0))              from r = reps_rel (1 + norm(p_0))
        G <- G + norm(g)²
        p <- p - lr r / sqrt(G + epsilon) g     init_eta: the first step is p - lr init_eta g, and r starts as 0

    The norms are over all arrays, and p_0 is the initial parameter. `learning_rate` is a factor of the rate that is
    found: 1. The authors evaluate an average of the parameters: `use_ema=True`.

    Args:
        reps_rel: the first distance, in units of the size of the parameters.
        epsilon: a constant added to the sum of squared gradients, so that it is not 0.
        init_eta: the rate of the first step, instead of `reps_rel`. None: `reps_rel` is used.
    """

    variants: ClassVar = ("authors",)

    learning_rate: Rate = 1.0
    reps_rel: Annotated[float, Within(above=0, below=math.inf)] = 1e-6
    epsilon: Amount = 1e-8
    init_eta: Annotated[float, Within(above=0, below=math.inf)] | None = None

    class State(NamedTuple):
        start: Exact

    class Scalars(NamedTuple):
        distance: Any  # r
        squares: Any  # G

    class Sums(NamedTuple):
        gradients: Array
        moved: Array
        parameters: Array

    def init(self, p: Array) -> State:
        return self.State(p)

    def scalars(self) -> Scalars:
        return self.Scalars(0.0, 0.0)

    def decayed(self, g: Array, p: Array, at: Clock) -> Array:
        g = squarable(g, g.size)
        return g if at.weight_decay is None else g + at.weight_decay * p

    def share(self, g: Array, p: Array, s: State, at: Clock) -> Sums:
        return self.Sums(*(jnp.sum(square(squarable(x, x.size))) for x in (self.decayed(g, p, at), p - s.start, p)))

    def advance(self, scalars: Scalars, at: Clock) -> Scalars:
        distance = jnp.maximum(scalars.distance, root(at.sums.moved))
        if self.init_eta is None:
            distance = jnp.where(at.t == 1, self.reps_rel * (1 + root(at.sums.parameters)), distance)
        return self.Scalars(distance, scalars.squares + at.sums.gradients)

    def decoupled(self, weight_decay: Any) -> None:
        return None

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        rate = at.scalars.distance / jnp.sqrt(at.scalars.squares + self.epsilon)
        if self.init_eta is not None:
            rate = jnp.where(at.t == 1, self.init_eta, rate)
        return -at.lr * rate * self.decayed(g, p, at), s
