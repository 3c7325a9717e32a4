"""Shampoo: gradients multiplied by roots of the inverse second moments of their rows and columns."""

from typing import Annotated, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import ema, gathered, matmul, placed_as, root, squarable, square
from jaxopt_keras.language.rule import (
    COMPLEMENT,
    Amount,
    Clock,
    Decay,
    Exact,
    Fixed,
    NonNegative,
    Rate,
    Rule,
    Signed,
    Within,
)
from jaxopt_keras.rules.adam import Adam


class Shampoo(Rule):
    """Shampoo (Gupta, Koren & Singer 2018, arXiv:1802.09568), in the form of Meta's release (arXiv:2309.06497).

        m <- beta_1 m + (1 - beta_1) g,  h = m / (1 - beta_1^t)
        L <- beta_2 L + (1 - beta_2) g gᵀ       R <- beta_2 R + (1 - beta_2) gᵀ g
        P = (L / (1 - beta_2^t) + epsilon)^{-1 / 4},  Q = (R / (1 - beta_2^t) + epsilon)^{-1 / 4}
        u = P h Q,  a = h / (sqrt(v) + grafting_epsilon)
        p <- p - lr |a| / |u| u                 without grafting: p <- p - lr u

    With beta_2 = 1, the default, L and R are plain sums. P and Q are computed every `precondition_frequency` updates;
    before the first of them the step is that of a. v is Adam's bias-corrected average of g². A matrix with an axis
    longer than `max_preconditioner_dim` is cut into blocks, each with its own L, R and norms. Adam updates arrays that
    are not matrices.

    Args:
        beta_1: the decay of `momentum`, the average of gradients.
        beta_2: the decay of L and R; 1: sums of all updates.
        epsilon: a constant added to the eigenvalues of L and R.
        precondition_frequency: the number of updates from one root to the next.
        max_preconditioner_dim: the longest side of a block.
        grafting: the method that gives the size of the step of each block; "none": the step keeps its own.
        grafting_beta_2: the decay of `velocity`, Adam's average of squared gradients.
        grafting_epsilon: a constant added to Adam's denominator.
    """

    variants: ClassVar = ("authors",)
    grain: ClassVar = "matrix"
    complex_ok: ClassVar = False

    learning_rate: Rate = 0.01
    beta_1: Decay = 0.9
    beta_2: Annotated[float, Within(0, 1), COMPLEMENT, Fixed(1.0)] = 1.0
    epsilon: Amount = 1e-12
    precondition_frequency: Annotated[int, Within(1)] = 1
    max_preconditioner_dim: Annotated[int, Within(1)] = 1024
    grafting: Literal["adam", "none"] = "adam"
    grafting_beta_2: Decay = 0.999
    grafting_epsilon: Amount = 1e-8

    class State(NamedTuple):
        momentum: Signed
        velocity: NonNegative
        left: Exact
        right: Exact
        left_root: Exact
        right_root: Exact

    def accepts(self, path: str, p: Array) -> bool:
        return p.ndim == 2 and p.size > 0

    @property
    def fallback(self) -> Rule:
        values = {"beta_1": self.beta_1, "beta_2": self.grafting_beta_2, "epsilon": self.grafting_epsilon}
        return Adam(variant="optax").bind(values | {"learning_rate": self.learning_rate})

    def init(self, p: Array) -> State:
        sides = [min(n, self.max_preconditioner_dim) for n in p.shape]
        blocks = [-(-n // side) for n, side in zip(p.shape, sides, strict=True)]
        left, right = (jnp.zeros((*blocks, side, side), p.dtype) for side in sides)
        like = jnp.zeros_like
        return self.State(like(p), like(p), left, right, like(left), like(right))

    def cut(self, x: Array) -> Array:
        """Return the blocks of a matrix as an array (down, across, rows, columns); zeros fill the last ones."""
        (m, n), most = x.shape, self.max_preconditioner_dim
        rows, columns = min(m, most), min(n, most)
        filled = jnp.pad(gathered(x), ((0, -m % rows), (0, -n % columns)))
        return filled.reshape(-(-m // rows), rows, -(-n // columns), columns).swapaxes(1, 2)

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        g = squarable(g, g.size)
        m = ema(s.momentum, g, self.beta_1)
        v = ema(s.velocity, square(g), self.grafting_beta_2)
        h, blocks = self.cut(m / (1 - self.beta_1**at.t)), self.cut(g)
        seen = matmul(blocks, blocks.mT), matmul(blocks.mT, blocks)
        if self.beta_2 == 1.0:
            (left, right), correction = (s.left + seen[0], s.right + seen[1]), 1.0
        else:
            left, right = ema(s.left, seen[0], self.beta_2), ema(s.right, seen[1], self.beta_2)
            correction = 1 - self.beta_2**at.t
        # Roots are not differentiated: of equal eigenvalues they have no derivative.
        factors = jax.lax.stop_gradient((left / correction, right / correction))
        roots = jax.lax.cond(
            at.t % self.precondition_frequency == 0,
            lambda: tuple(inverse_root(x, self.epsilon) for x in factors),
            lambda: (s.left_root, s.right_root),
        )
        # There are none before the first decomposition, nor of a parameter that joined after it until the next one.
        has_roots = jnp.any(roots[0] != 0, (-2, -1), keepdims=True)
        u = matmul(matmul(roots[0], h), roots[1])
        a = h / (root(self.cut(v) / (1 - self.grafting_beta_2**at.t)) + self.grafting_epsilon)
        if self.grafting == "adam":
            u = u * length(a) / jnp.where(has_roots, jnp.maximum(length(u), jnp.finfo(u.dtype).tiny), 1)
        u = jnp.where(has_roots, u, a if self.grafting == "adam" else h)
        whole = u.swapaxes(1, 2).reshape(u.shape[0] * u.shape[2], -1)
        step = -at.lr * placed_as(whole[: p.shape[0], : p.shape[1]], p)
        return step, self.State(m, v, left, right, *roots)


def length(x: Array) -> Array:
    return root(jnp.sum(square(x), (-2, -1), keepdims=True))


def inverse_root(x: Array, epsilon: Array | float) -> Array:
    """Return `(x + epsilon)^(-1/4)` of symmetric matrices, whose eigenvalues below 0, rounding errors, become 0."""
    values, vectors = jnp.linalg.eigh(x)
    values = values - jnp.minimum(jnp.min(values, -1, keepdims=True), 0) + epsilon
    return matmul(vectors * values[..., None, :] ** -0.25, vectors.mT)
