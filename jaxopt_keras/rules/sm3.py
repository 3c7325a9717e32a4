"""SM3: Adagrad with one number for each row, column or other slice, in the place of one for each element."""

from typing import Annotated, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import ema, root, squarable, square
from jaxopt_keras.language.rule import Amount, Clock, Momentum, Rate, Rule, Signed, Slot

Sums = Annotated[Array, Slot(nonnegative=True, exact=True)]
NAMES = tuple(f"accumulator_{axis}" for axis in range(5))


class SM3(Rule):
    """SM3, "square-root of minima of sums of maxima of squared gradients" (Anil et al. 2019, arXiv:1901.11150).

        v = g² + min(a_i)       over the axes i; a_i has one number for each place along its axis
        a_i <- max(v)           over all axes but i
        m <- momentum m + (1 - momentum) g / sqrt(v + epsilon),  0 where v is 0
        p <- p - lr m

    This is the paper's SM3-II. The second moments of a matrix take as many numbers as it has rows and columns, where
    Adagrad's take one for each element. Of more than five axes the last ones are taken together, from the fifth on. An
    array of one axis has one number for each element: that is Adagrad.

    Args:
        momentum: the decay of `momentum`, the average of steps. 0: none is kept.
        epsilon: a constant added under the root. None: 1e-30, or with `variant="optax"` 1e-8.
    """

    variants: ClassVar = ("authors", "optax")
    grain: ClassVar = "matrix"
    shapes: ClassVar = ((2,) * len(NAMES),)

    learning_rate: Rate = 1e-3
    momentum: Momentum = 0.9
    epsilon: Amount | None = None

    class State(NamedTuple):
        momentum: Signed | None = None
        accumulator_0: Sums | None = None
        accumulator_1: Sums | None = None
        accumulator_2: Sums | None = None
        accumulator_3: Sums | None = None
        accumulator_4: Sums | None = None

    def lacking(self, ndim: int) -> dict[str, tuple[int, ...]]:
        """Return the axes over which each accumulator of an array has the maxima."""
        axes = range(ndim)
        kept = [{i} if name != NAMES[-1] else {*axes[i:]} for i, name in enumerate(NAMES[: max(ndim, 1)])]
        return {name: tuple(i for i in axes if i not in own) for name, own in zip(NAMES, kept, strict=False)}

    def kinds(self, p: Array) -> dict[str, Slot]:
        slots = self.slots()
        return slots | {name: slots[name]._replace(lacks=axes) for name, axes in self.lacking(p.ndim).items()}

    def init(self, p: Array) -> State:
        sums = {name: jnp.zeros_like(p.real).sum(axes) for name, axes in self.lacking(p.ndim).items()}
        return self.State(None if self.momentum == 0 else jnp.zeros_like(p), **sums)

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        g, lacking = squarable(g), self.lacking(g.ndim)
        least = jnp.full_like(g.real, jnp.inf)
        for name, axes in lacking.items():
            least = jnp.minimum(least, jnp.expand_dims(getattr(s, name), axes))
        v = least + square(g)
        epsilon = (1e-8 if self.variant == "optax" else 1e-30) if self.epsilon is None else self.epsilon
        is_seen = v != 0
        u = jnp.where(is_seen, g / root(jnp.where(is_seen, v, 1) + epsilon), 0)
        m = u if s.momentum is None else ema(s.momentum, u, self.momentum)
        sums = {name: jnp.max(v, axes, initial=0) for name, axes in lacking.items()}
        return -at.lr * m, self.State(None if s.momentum is None else m, **sums)
