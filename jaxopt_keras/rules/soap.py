"""SOAP: Adam in the eigenbasis of Shampoo's factors."""

from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import ema, gathered, matmul, placed_as, product, root, squarable, square
from jaxopt_keras.language.rule import Amount, Clock, Count, Decay, Exact, NonNegative, Rate, Rule, Signed, Within


class SOAP(Rule):
    """SOAP, "Shampoo with Adam in the preconditioner's eigenbasis" (Vyas et al. 2024, arXiv:2409.11321).

        the first update:  L = (1 - b) g gᵀ,  R = (1 - b) gᵀ g,  P and Q are their eigenvectors, and p stays
        m <- beta_1 m + (1 - beta_1) g          v <- beta_2 v + (1 - beta_2) (Pᵀ g Q)²
        u = sqrt(1 - beta_2^n) / (1 - beta_1^n) P ((Pᵀ m Q) / (sqrt(v) + epsilon)) Qᵀ,  n = t - 1
        p <- (p - lr u) (1 - lr weight_decay)
        L <- b L + (1 - b) g gᵀ                 R <- b R + (1 - b) gᵀ g

    With `kl`, KL-SOAP (Lin et al. 2025, arXiv:2509.03378), each factor is of gradients that the other one has divided;
    l and r are the diagonals of Pᵀ L P and Qᵀ R Q, at least epsilon, before this update:

        h = g Q / sqrt(r columns)               k = Pᵀ g / sqrt(l rows)
        L <- b L + (1 - b) h hᵀ                 R <- b R + (1 - b) kᵀ k

    b is `shampoo_beta`. After every `precondition_frequency` updates the columns of P, and the rows of v with them, are
    sorted by the diagonal of Pᵀ L P, and P becomes the orthogonal factor of L P; Q likewise. An axis longer than
    `max_precond_dim` is not turned, and no array that is not a matrix: that is Adam, without the first update.

    Args:
        beta_1: the decay of `momentum`, the average of gradients.
        beta_2: the decay of `velocity`, the average of squares of turned gradients.
        shampoo_beta: the decay of the factors L and R. None: beta_2.
        epsilon: a constant added to the denominator, so that it is not 0.
        precondition_frequency: the number of updates from one basis to the next.
        max_precond_dim: the longest axis with a factor, which has the square of its length.
        kl: the factors of KL-SOAP. Where only one axis has a factor, it is that of SOAP.
    """

    variants: ClassVar = ("authors",)
    grain: ClassVar = "matrix"
    complex_ok: ClassVar = False
    defaults: ClassVar = {"weight_decay": 0.01}

    learning_rate: Rate = 3e-3
    beta_1: Decay = 0.95
    beta_2: Decay = 0.95
    shampoo_beta: Decay | None = None
    epsilon: Amount = 1e-8
    precondition_frequency: Annotated[int, Within(1)] = 10
    max_precond_dim: Count = 10_000
    kl: bool = False

    class State(NamedTuple):
        momentum: Signed
        velocity: NonNegative
        left: Exact | None = None
        right: Exact | None = None
        left_basis: Exact | None = None
        right_basis: Exact | None = None

    def init(self, p: Array) -> State:
        factors = [jnp.zeros((n, n), p.dtype) if self.has_factor(p, n) else None for n in p.shape[:2]]
        bases = [None if x is None else jnp.eye(len(x), dtype=p.dtype) for x in factors]
        left, right, p_basis, q_basis = (*factors, *bases) if p.ndim == 2 else (None,) * 4
        return self.State(jnp.zeros_like(p), jnp.zeros_like(p), left, right, p_basis, q_basis)

    def has_factor(self, p: Array, length: int) -> bool:
        return p.ndim == 2 and p.size > 0 and length <= self.max_precond_dim

    def decoupled(self, weight_decay: Any) -> Any:
        return None

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        g, is_first = squarable(g, g.size), at.t == 1
        n = jnp.maximum(at.t - 1, 1)
        m = jnp.where(is_first, 0, ema(s.momentum, g, self.beta_1))
        v = jnp.where(is_first, 0, ema(s.velocity, square(turned(g, s)), self.beta_2))
        rate = at.lr * jnp.sqrt(1 - self.beta_2**n) / (1 - self.beta_1**n)
        step = -rate * turned_back(turned(m, s) / (root(v) + self.epsilon), s)
        if at.weight_decay is not None:
            step = step - at.lr * at.weight_decay * (p + step)
        beta = self.beta_2 if self.shampoo_beta is None else self.shampoo_beta
        by_rows = by_columns = g
        if self.kl and s.left is not None and s.right is not None:
            by_rows = jnp.where(is_first, g, divided(g, s.right, s.right_basis, self.epsilon))
            by_columns = jnp.where(is_first, g, divided(g.T, s.left, s.left_basis, self.epsilon).T)
        left = None if s.left is None else ema(s.left, product(by_rows, by_rows.T, s.left), beta)
        right = None if s.right is None else ema(s.right, product(by_columns.T, by_columns, s.right), beta)
        new = s._replace(momentum=m, velocity=v, left=left, right=right)
        if left is not None or right is not None:
            is_due = n % self.precondition_frequency == 0
            branch = jnp.where(is_first, 0, jnp.where(is_due, 1, 2))
            # Of eigenvectors nothing is differentiated: of equal eigenvalues they have no derivative.
            new = jax.lax.switch(branch, (started, renewed, lambda s: s), jax.lax.stop_gradient(new))
            new = new._replace(momentum=m, left=left, right=right)
        return jnp.where(is_first, 0, step), new


def turned(x: Array, s: SOAP.State) -> Array:
    x = x if s.left_basis is None else product(s.left_basis.T, x, x)
    return x if s.right_basis is None else product(x, s.right_basis, x)


def turned_back(x: Array, s: SOAP.State) -> Array:
    x = x if s.left_basis is None else product(s.left_basis, x, x)
    return x if s.right_basis is None else product(x, s.right_basis.T, x)


def divided(g: Array, factor: Array, basis: Any, epsilon: Any) -> Array:
    """Return `g`, turned by a basis of its columns, divided by the roots of the factor's diagonal in that basis."""
    diagonal = jnp.sum(basis * matmul(factor, basis), 0, keepdims=True)
    return squarable(product(g, basis, g) / root(jnp.maximum(diagonal, epsilon) * g.shape[1]), g.size)


def started(s: SOAP.State) -> SOAP.State:
    """Return the state with the eigenvectors of the first factors as bases."""
    rank = min(s.momentum.shape)
    left = None if s.left is None else eigenvectors(s.left, rank)
    return s._replace(left_basis=left, right_basis=None if s.right is None else eigenvectors(s.right, rank))


def eigenvectors(x: Array, rank: int) -> Array:
    """Return eigenvectors of `x`, those of the greatest eigenvalues first, for an `x` of at most this rank.

    The others may be any basis of the remaining space. This one depends on the first ones alone, not on the rounding
    errors of `eigh`, so that two platforms train alike.
    """
    vectors = jnp.linalg.eigh(x)[1][:, ::-1]
    return vectors if rank == len(x) else jnp.linalg.qr(vectors[:, :rank], mode="complete")[0]


def renewed(s: SOAP.State) -> SOAP.State:
    """Return the state with bases that are one power iteration nearer to the eigenvectors."""
    v, bases = s.velocity, {}
    for axis, (name, factor, basis) in enumerate(
        [("left_basis", s.left, s.left_basis), ("right_basis", s.right, s.right_basis)]
    ):
        if factor is not None and basis is not None:
            moved = matmul(factor, basis)
            order = jnp.argsort(-jnp.sum(basis * moved, 0))
            v = placed_as(jnp.take(gathered(v), order, axis), v)
            bases[name] = jnp.linalg.qr(moved[:, order])[0]
    return s._replace(velocity=v, **bases)
