"""Dion: orthogonal steps of a few directions, by one power iteration, with error feedback."""

import functools
import math
from dataclasses import field
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import gathered, matmul, normal, placed_as, product, root, squarable, square
from jaxopt_keras.language.rule import Amount, Clock, Decay, Exact, Rate, Read, Rule, Slot
from jaxopt_keras.rules.dion2 import read_fraction
from jaxopt_keras.rules.muon import Muon
from jaxopt_keras.rules.orthogonal.base import Orthogonal
from jaxopt_keras.rules.orthogonal.fallback import read_others
from jaxopt_keras.rules.orthogonal.shapes import read_layers

ROUNDING = 10  # times the rounding error of the norm of m: a shorter column of R has no correct digit


def rank(fraction: float, shape: tuple[int, ...]) -> int:
    """Return the number of directions of a matrix."""
    return math.ceil(fraction * min(shape))


class Dion(Rule):
    """Dion, "distributed orthonormalized updates" (Ahn et al. 2025, arXiv:2504.05295).

        m <- m + g,  P is the orthogonal factor of mᵀ Q,  R = m P
        m <- m - (1 - momentum) R Pᵀ            Q <- R / (|R| + epsilon), with the norm of each column
        p <- p - lr sqrt(columns / rows) Q Pᵀ

    P and Q have `rank_fraction` times as many columns as the shorter axis of the matrix is long, rounded up. What they
    do not show of m stays in it. Q, the slot `basis`, starts with normal numbers, from the option `seed`; it stays if m
    is 0. Columns of R that are rounding errors, where m has a lower rank, give columns of 0. This is the paper's
    algorithm, and the release's `DionSimple`; its `Dion` takes mᵀ for m where a matrix has more rows than columns.

    Adam updates arrays that are not matrices, and those with "embedding" in their path or with a path in which one of
    `exclude_layers` is found: at the rate `lr adam_lr_ratio`, with `adam_weight_decay`. `describe` lists them.

    Args:
        momentum: the part of what P and Q show of m that stays in it.
        rank_fraction: the number of directions, as a part of the shorter axis: more than 0, and at most 1.
        epsilon: a constant added to the norms of columns, and to Adam's denominator.
        adam_beta_1: `beta_1` of Adam, for the parameters that it updates.
        adam_beta_2: `beta_2` of Adam.
        adam_weight_decay: the weight decay of the parameters that Adam updates.
        adam_lr_ratio: the rate of the parameters that Adam updates, in units of the rate.
        exclude_layers: a list of regular expressions: Adam updates parameters with a matching path. None: no list.
        exclude_embeddings: leave parameters with "embedding" in their path to Adam.
        others: a rule in the place of Adam, at the rate `lr adam_lr_ratio`. Its numbers are part of the program.
    """

    variants: ClassVar = ("authors",)
    grain: ClassVar = "matrix"
    complex_ok: ClassVar = False
    defaults: ClassVar = {"weight_decay": 0.01}
    takes: ClassVar = ("key",)
    shapes: ClassVar[Any] = Orthogonal.shapes

    learning_rate: Rate = 0.01
    momentum: Decay = 0.95
    rank_fraction: Annotated[Any, Read(functools.partial(read_fraction, "rank_fraction"))] = 1.0
    epsilon: Amount = 1e-8
    adam_beta_1: Decay = 0.9
    adam_beta_2: Decay = 0.95
    adam_weight_decay: Amount | None = 0.01
    adam_lr_ratio: Amount = 1.0
    exclude_layers: Annotated[Any, Read(read_layers, searched=True)] = None
    exclude_embeddings: bool = True
    others: Annotated[Any, Read(read_others)] = field(default=None, kw_only=True)

    class State(NamedTuple):
        momentum: Exact
        basis: Exact

    excludes = Muon.excludes
    fallback = Muon.fallback  # pyright: ignore[reportIncompatibleMethodOverride]  # a property too

    def accepts(self, path: str, p: Array) -> bool:
        return p.ndim == 2 and p.size > 0 and not self.excludes(path)

    def about(self, p: Any) -> str:
        return f"rank {rank(self.rank_fraction, p.shape)}"

    def kinds(self, p: Array) -> dict[str, Slot]:
        return self.slots() | {"basis": Slot(exact=True, resized=(1,))}

    def init(self, p: Array) -> State:
        zeros = jnp.zeros_like(p)
        return self.State(
            zeros, jnp.broadcast_to(zeros.sum(1, keepdims=True), (p.shape[0], rank(self.rank_fraction, p.shape)))
        )

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        m, (rows, columns) = squarable(s.momentum + g, g.size), g.shape
        drawn = lambda: placed_as(normal(at.key, s.basis.shape, g.dtype), s.basis)
        before = jax.lax.cond(jnp.any(s.basis != 0), lambda: s.basis, drawn)
        orthogonal = jnp.linalg.qr(matmul(gathered(m).T, gathered(before)))[0]
        shown = product(m, orthogonal, s.basis)
        lengths = root(jnp.sum(square(shown), 0, keepdims=True))
        is_seen = ~(lengths <= ROUNDING * jnp.finfo(g.dtype).eps * root(jnp.sum(square(m))))  # of NaN too
        basis = jnp.where(is_seen, shown / (lengths + self.epsilon), 0)
        left = m - (1 - self.momentum) * product(shown, orthogonal.T, m)
        is_moving = jnp.any(m != 0)
        step = -at.lr * (columns / rows) ** 0.5 * jnp.where(is_moving, product(basis, orthogonal.T, m), 0)
        return step, self.State(left, jnp.where(is_moving, basis, before))
