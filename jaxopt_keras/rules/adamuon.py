"""AdaMuon: Muon with a second moment of each element of the orthogonal matrix."""

from dataclasses import field
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import ema, root, square
from jaxopt_keras.language.rule import Amount, Clock, Decay, NonNegative, Rate, Signed
from jaxopt_keras.rules.muon import Muon
from jaxopt_keras.rules.normuon import frobenius


class AdaMuon(Muon):
    """AdaMuon (Si et al. 2025, arXiv:2507.11005).

        m <- momentum m + (1 - momentum) g
        u = momentum m + (1 - momentum) g if nesterov else m
        u <- sign(u) if signed,   x = orthogonalized(u), as by `Muon`
        v <- beta_2 v + (1 - beta_2) x²,   y = x / (sqrt(v / (1 - beta_2^t)) + 1e-8)
        p <- p - lr rms_rate sqrt(rows columns) y / (|y| + 1e-8)

    Adam, with `adam_beta_1`, `adam_beta_2` and `epsilon` of the paper's form, updates the parameters that are no
    matrices (see `Muon`). Another `scale` than "rms" replaces `rms_rate sqrt(max(rows, columns))`.

    Args:
        beta_2: the decay of the average of squares.
        signed: orthogonalize the signs of the momentum, as the later versions of the paper.
    """

    variants: ClassVar = ("authors",)
    defaults: ClassVar = {"weight_decay": 0.01}

    learning_rate: Rate = 0.02
    adam_weight_decay: Amount | None = 0.01
    epsilon: Amount = 1e-8
    beta_2: Decay = 0.999
    signed: bool = field(default=False, kw_only=True)

    class State(NamedTuple):  # pyright: ignore[reportIncompatibleVariableOverride]  # it has a slot more
        momentum: Signed
        velocity: NonNegative

    def lead(self, g: Array, p: Array, s: Any, at: Clock) -> tuple[Array, Any]:
        m = ema(s.momentum, g, self.momentum)
        u = ema(m, g, self.momentum) if self.nesterov else m
        return jnp.sign(u) if self.signed else u, s._replace(momentum=m)

    def trail(self, x: Array, p: Array, s: Any, at: Clock) -> tuple[Array, Any]:
        v = ema(s.velocity, square(x), self.beta_2)
        seen = self.view(x.shape)
        y = seen.matrices(x / (root(v / (1 - self.beta_2**at.t)) + 1e-8))
        y = y * (min(seen.matrix) ** 0.5 / (frobenius(y) + 1e-8))
        return self.scaled(seen.restored(y), p, at), s._replace(velocity=v)
