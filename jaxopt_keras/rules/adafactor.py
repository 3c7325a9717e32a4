"""Adafactor: a second moment stored as its row and column means."""

from dataclasses import field
from typing import Annotated, Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxopt_keras.language.numerics import mean, squarable, square
from jaxopt_keras.language.rule import Amount, Clock, Count, NonNegative, Number, Rate, Rule, Slot, Within

Row = Annotated[Array, Slot(nonnegative=True, lacks=(-1,))]
Column = Annotated[Array, Slot(nonnegative=True, lacks=(-2,))]


class Adafactor(Rule):
    """Adafactor (Shazeer & Stern 2018, arXiv:1804.04235).

        b = 1 - t^beta_2_decay,  q = g² + epsilon_1
        matrices, over the last two axes:  r <- b r + (1 - b) mean_columns(q),  c <- b c + (1 - b) mean_rows(q),
                                           v = r cᵀ / mean(r)
        other arrays:                      v <- b v + (1 - b) q
        u = g / sqrt(v),  u <- u / max(1, rms(u) / clip_threshold)
        p <- p - max(epsilon_2, rms(p)) min(lr, 1 / sqrt(t)) u

    The rate is at most 1 / sqrt(t) whatever `relative_step` is, as in Keras. Unlike Keras, a factored array never has a
    full-size v, so that rows and columns of zeros are harmless.

    `variant="optax"` does not limit the rate, factors over the two largest axes if both have `min_dim_size_to_factor`
    (None: 128; the Keras variant: 1) elements, and applies weight decay as p <- p - weight_decay p, without the rate.

    Args:
        learning_rate: the greatest rate: a number, or a schedule, which is a function of the step.
        beta_2_decay: the power of t in the decay of the second moments.
        epsilon_1: a constant added to squared gradients.
        epsilon_2: the least root mean square of a parameter that its rate is relative to.
        clip_threshold: the greatest root mean square of an update before the rate.
        relative_step: has no effect: the rate is always limited, or with "optax" never.
        min_dim_size_to_factor: the least length of both axes of a matrix whose second moment is factored. None: that of
            the variant.
    """

    grain: ClassVar = "matrix"

    learning_rate: Rate = 1e-3
    beta_2_decay: Number = -0.8
    epsilon_1: Amount = 1e-30
    epsilon_2: Amount = 1e-3
    clip_threshold: Annotated[float, Within(above=0)] = 1.0
    relative_step: bool = True
    min_dim_size_to_factor: Count | None = field(default=None, kw_only=True)

    class State(NamedTuple):
        row: Row | None = None  # row and column, or velocity
        column: Column | None = None
        velocity: NonNegative | None = None

    def factored_axes(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Return the axes (rows, columns) of the matrix in `shape`, or None if it is not factored."""
        if len(shape) < 2:
            return None
        optax = self.variant == "optax"
        rows, columns = np.argsort(shape)[-2:] if optax else (len(shape) - 2, len(shape) - 1)
        least = self.min_dim_size_to_factor
        least = max((128 if optax else 1) if least is None else least, 1)
        return (int(rows), int(columns)) if min(shape[rows], shape[columns]) >= least else None

    def init(self, p: Array) -> State:
        zeros, axes = jnp.zeros_like(p.real), self.factored_axes(p.shape)
        if axes is None:
            return self.State(velocity=zeros)
        return self.State(row=zeros.sum(axes[1]), column=zeros.sum(axes[0]))

    def kinds(self, p: Array) -> dict[str, Slot]:
        axes, slots = self.factored_axes(p.shape), self.slots()
        if axes is None:
            return slots
        rows, columns = axes
        return slots | {
            "row": Slot(nonnegative=True, lacks=(columns,)),
            "column": Slot(nonnegative=True, lacks=(rows,)),
        }

    def decoupled(self, weight_decay: Any) -> Any:
        return None if self.variant == "optax" else weight_decay

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        g = squarable(g)
        b, q = 1 - at.t**self.beta_2_decay, square(g) + self.epsilon_1
        if s.velocity is not None:
            v = b * s.velocity + (1 - b) * q
            u, s = g / jnp.sqrt(v), self.State(velocity=v)
        else:
            axes = self.factored_axes(g.shape)
            assert axes is not None and s.row is not None and s.column is not None  # as `init` made it
            rows, columns = axes
            r = b * s.row + (1 - b) * mean(q, columns)
            c = b * s.column + (1 - b) * mean(q, rows)
            r_full, c_full = jnp.expand_dims(r, columns), jnp.expand_dims(c, rows)
            # Divide by each factor: if a row and a column are zeros, their product underflows float32 (Keras: NaN).
            u = g * (jnp.sqrt(mean(r_full, rows, keepdims=True)) / jnp.sqrt(r_full)) / jnp.sqrt(c_full)
            s = self.State(row=r, column=c)
        u = u / jnp.maximum(1, at.rms(u) / self.clip_threshold)
        scale = jnp.maximum(self.epsilon_2, at.rms(p))
        if self.variant == "keras":
            return -scale * jnp.minimum(at.lr, 1 / jnp.sqrt(at.t)) * u, s
        step = -scale * at.lr * u
        return (step if at.weight_decay is None else step - at.weight_decay * p), s
