"""NorMuon: Muon with one adaptive scale for each neuron."""

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import ema, root, square
from jaxopt_keras.language.rule import Amount, Clock, Decay, Rate, Signed, Slot
from jaxopt_keras.rules.muon import Muon

Neurons = Annotated[Array, Slot(nonnegative=True, lacks=(-2,))]


def frobenius(stack: Array) -> Array:
    """Return the norm of each matrix of a stack, of shape (count, 1, 1)."""
    return root(jnp.sum(square(stack), (1, 2), keepdims=True))


class NorMuon(Muon):
    """NorMuon (Li et al. 2025, arXiv:2510.05491): Muon, with updates of equal size for all neurons.

        m <- momentum m + (1 - momentum) g
        u = momentum m + (1 - momentum) g if nesterov else m,   x = orthogonalized(u), as by `Muon`
        v <- beta_2 v + (1 - beta_2) mean_rows(x²)              one number for each column, which is a neuron
        y = x / (sqrt(v) + 1e-10),   p <- p - lr sqrt(max(1, columns / rows)) y |x| / (|y| + 1e-10)

    Adam, with `adam_beta_1`, `adam_beta_2` and `epsilon` of the paper's form, updates the parameters that are no
    matrices (see `Muon`).

    Args:
        beta_2: the decay of the average of squares.
        rms_rate: the root mean square of an update for a rate of 1, where `scale` is "rms".
    """

    variants: ClassVar = ("authors",)
    defaults: ClassVar = {"weight_decay": None}

    learning_rate: Rate = 0.02
    adam_beta_2: Decay = 0.95
    adam_weight_decay: Amount | None = 0.0
    epsilon: Amount = 1e-10
    scale: Literal["rms", "keller", "spectral"] = "keller"
    beta_2: Decay = 0.95

    class State(NamedTuple):  # pyright: ignore[reportIncompatibleVariableOverride]  # it has a slot more
        momentum: Signed
        velocity: Neurons

    def rows(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the axes of rows, which the slot of neurons lacks."""
        return self.view(shape).lacking("rows") if len(shape) > 1 else ()

    def init(self, p: Array) -> State:
        return self.State(jnp.zeros_like(p), jnp.zeros_like(p.real).sum(self.rows(p.shape)))

    def kinds(self, p: Array) -> dict[str, Slot]:
        return self.slots() | {"velocity": Slot(nonnegative=True, lacks=self.rows(p.shape))}

    def lead(self, g: Array, p: Array, s: Any, at: Clock) -> tuple[Array, Any]:
        m = ema(s.momentum, g, self.momentum)
        return ema(m, g, self.momentum) if self.nesterov else m, s._replace(momentum=m)

    def trail(self, x: Array, p: Array, s: Any, at: Clock) -> tuple[Array, Any]:
        seen = self.view(x.shape)
        x, neurons = seen.matrices(x), seen.without("rows")
        v = ema(neurons.matrices(s.velocity), jnp.mean(square(x), 1, keepdims=True), self.beta_2)
        y = x / (root(v) + 1e-10)
        y = y * (frobenius(x) / (frobenius(y) + 1e-10))
        return self.scaled(seen.restored(y), p, at), s._replace(velocity=neurons.restored(v))
