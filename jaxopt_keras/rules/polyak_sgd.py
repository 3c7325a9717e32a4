"""SGD with Polyak's step size: as far as the loss is from its least value."""

from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import squarable, square
from jaxopt_keras.language.rule import Amount, Clock, Number, Rate, Rule


class PolyakSGD(Rule):
    """SGD with Polyak steps (Polyak 1987; Loizou et al. 2020, arXiv:2002.10542). Every step must be given the loss f.

        G = norm(g)², over all arrays
        p <- p - lr min((f - f_min) / (G + eps), max_learning_rate) g           plus: max(f - f_min, 0)

    Where G + eps is 0, or so small that it is as good as 0, nothing moves. Pass the loss by `step(..., value=f)`, or in
    the stateful face by `apply_gradients(..., loss=f)`; `minimize` passes it. `learning_rate` is a factor of the rate
    that is found.

    Args:
        max_learning_rate: the greatest rate.
        f_min: a lower bound of the loss; 0 where a model can fit all data.
        eps: a constant added to the squared norm of the gradients.
        plus: no step goes uphill where the loss is less than `f_min`.
    """

    variants: ClassVar = ("optax",)
    takes: ClassVar = ("loss",)

    learning_rate: Rate = 1.0
    max_learning_rate: Amount = 1.0
    f_min: Number = 0.0
    eps: Amount = 0.0
    plus: bool = False

    class Scalars(NamedTuple):
        rate: Any

    class Sums(NamedTuple):
        squares: Array

    def scalars(self) -> Scalars:
        return self.Scalars(0.0)

    def share(self, g: Array, p: Array, s: Any, at: Clock) -> Sums:
        return self.Sums(jnp.sum(square(squarable(g))))

    def advance(self, scalars: Scalars, at: Clock) -> Scalars:
        size, gap = at.sums.squares + self.eps, at.loss - self.f_min
        usable = ~(size <= jnp.finfo(size.dtype).eps)  # NaN: it shows
        gap = jnp.maximum(gap, 0) if self.plus else gap
        rate = jnp.minimum(gap / jnp.where(usable, size, 1), self.max_learning_rate)
        return self.Scalars(jnp.where(usable, rate, 0))

    def update(self, g: Array, p: Array, s: Any, at: Clock) -> tuple[Array, Any]:
        return -at.lr * at.scalars.rate * squarable(g), s
