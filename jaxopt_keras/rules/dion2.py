"""Dion2: Muon of a fraction of each matrix, with error feedback."""

import functools
import math
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.rule import Amount, Clock, Decay, Exact, Rate, Read
from jaxopt_keras.rules.muon import Muon


def read_fraction(name: str, value: Any) -> float:
    """Validate the option `name`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(
            f"`{name}` must be a Python number, since it shapes the program. Received: {name}={value!r} "
            f'({type(value).__name__}). Under `optax.inject_hyperparams`, pass `static_args=("{name}",)`.'
        )
    if not 0 < value <= 1:
        raise ValueError(f"`{name}` must be more than 0, and at most 1. Received: {name}={value!r}")
    return float(value)


class Dion2(Muon):
    """Dion2 (Ahn et al. 2025, arXiv:2512.16928): orthogonalizes the largest slices of the momentum only.

        m <- m + g,   x = orthogonalized(m), as by `Muon`
        p <- p - lr sqrt(columns / rows) x,   m <- momentum m

    Orthogonalized, updated and multiplied are only the slices of m with the largest sums of absolute values: `fraction`
    of the columns, or of the rows if they are fewer. The others of p and m do not change. The products cost a fraction
    of Muon's. Adam, with `adam_beta_1`, `adam_beta_2` and `epsilon` of the paper's form, updates the parameters that
    are no matrices (see `Muon`).

    Args:
        fraction: the part of the slices that a step updates, more than 0 and at most 1.
        momentum: the factor of the momentum of slices that a step has used.
        nesterov: has no effect.
    """

    variants: ClassVar = ("authors",)
    defaults: ClassVar = {"weight_decay": 0.01}

    learning_rate: Rate = 0.01
    adam_beta_2: Decay = 0.95
    adam_weight_decay: Amount | None = 0.01
    epsilon: Amount = 1e-8
    scale: Literal["rms", "keller", "spectral"] = "spectral"
    fraction: Annotated[Any, Read(functools.partial(read_fraction, "fraction"))] = 0.25

    class State(NamedTuple):  # pyright: ignore[reportIncompatibleVariableOverride]  # here it is a sum
        momentum: Exact

    def lead(self, g: Array, p: Array, s: Any, at: Clock) -> tuple[Array, Any]:
        m = s.momentum + g
        return m, s._replace(momentum=m)

    def whole(self, u: Array) -> Array:
        side = int(u.shape[0] >= u.shape[1])  # the shorter one; of a square matrix the columns, its outputs
        _, chosen = jax.lax.top_k(jnp.sum(jnp.abs(u), 1 - side), math.ceil(self.fraction * u.shape[side]))
        x = super().whole(jnp.take(u, chosen, side))
        return jnp.zeros_like(u).at[(slice(None),) * side + (chosen,)].set(x)

    def trail(self, x: Array, p: Array, s: Any, at: Clock) -> tuple[Array, Any]:
        seen = self.view(x.shape)
        stack, of_columns = seen.matrices(x), seen.matrix[0] >= seen.matrix[1]
        # A slice that was chosen is zero only if its momentum is.
        chosen = jnp.any(stack != 0, 1 if of_columns else 2, keepdims=True)
        used = seen.restored(jnp.broadcast_to(chosen, stack.shape))
        return self.scaled(x, p, at), s._replace(momentum=jnp.where(used, self.momentum * s.momentum, s.momentum))
