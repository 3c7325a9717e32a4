"""DoWG: DoG whose gradients weigh as much as the distance at their time."""

import math
from typing import Annotated, Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import squarable, square
from jaxopt_keras.language.rule import Amount, Clock, Exact, Rate, Rule, Within


class DoWG(Rule):
    """Distance over weighted gradients (Khaled, Mishchenko & Jin 2023, arXiv:2305.16284).

        g <- g + weight_decay p
        D <- max(D, norm(p - p_0)²)             D starts as init_estim_sq_dist
        G <- G + D norm(g)²
        p <- p - lr D / (sqrt(G) + epsilon) g

    The norms are over all arrays, and p_0 is the initial parameter. `learning_rate` is a factor of the rate that is
    found: 1.

    Args:
        init_estim_sq_dist: the first estimate of the squared distance to the solution. None: epsilon.
        epsilon: a constant added to the denominator, so that it is not 0.
    """

    variants: ClassVar = ("optax",)

    learning_rate: Rate = 1.0
    init_estim_sq_dist: Annotated[float, Within(above=0, below=math.inf)] | None = None
    epsilon: Amount = 1e-4

    class State(NamedTuple):
        start: Exact

    class Scalars(NamedTuple):
        squared_distance: Any  # D
        squares: Any  # G

    class Sums(NamedTuple):
        gradients: Array
        moved: Array

    def init(self, p: Array) -> State:
        return self.State(p)

    def scalars(self) -> Scalars:
        return self.Scalars(self.epsilon if self.init_estim_sq_dist is None else self.init_estim_sq_dist, 0.0)

    def decayed(self, g: Array, p: Array, at: Clock) -> Array:
        g = squarable(g, g.size)
        return g if at.weight_decay is None else g + at.weight_decay * p

    def share(self, g: Array, p: Array, s: State, at: Clock) -> Sums:
        return self.Sums(*(jnp.sum(square(squarable(x, x.size))) for x in (self.decayed(g, p, at), p - s.start)))

    def advance(self, scalars: Scalars, at: Clock) -> Scalars:
        distance = jnp.maximum(scalars.squared_distance, at.sums.moved)
        return self.Scalars(distance, scalars.squares + distance * at.sums.gradients)

    def decoupled(self, weight_decay: Any) -> None:
        return None

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        rate = at.scalars.squared_distance / (jnp.sqrt(at.scalars.squares) + self.epsilon)
        return -at.lr * rate * self.decayed(g, p, at), s
