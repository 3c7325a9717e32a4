"""Newton-Schulz iterations: polynomials that bring all singular values of a matrix near 1."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import matmul, norm
from jaxopt_keras.rules.orthogonal.coefficients import Triple, scale_and_epsilon

Normalization = Literal["frobenius", "schatten", "spectral", "aol"]
Precision = Literal["device", "float32", "bfloat16"]
TINY = 1e-8  # in the place of a sum that is zero
RESTART = 3  # the steps of a Gram iteration from one product with the matrix to the next


class Arithmetic(NamedTuple):
    """The products of an iteration: in bfloat16 with sums in float32, or in the matrix's own precision."""

    bfloat16: bool = False

    def __call__(self, x: Array, y: Array) -> Array:
        if self.bfloat16 and x.dtype == jnp.float32:
            x, y = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
            return jnp.matmul(x, y, preferred_element_type=jnp.float32)
        return matmul(x, y)

    def gram(self, x: Array) -> Array:
        return self(x, x.conj().T)


def orthogonalized(
    u: Array,
    iteration: Any,
    steps: Sequence[Triple],
    normalization: Normalization,
    gram: bool,
    precision: Precision,
    epsilon: Any,
) -> Array:
    """Return a matrix with the singular vectors of `u` and singular values near 1, by an iteration on its shorter side.

    Args:
        iteration: a result of `read_iteration`: what gives the scale of the normalization, or a function.
        steps: the coefficients of each step, unless `iteration` is a function.
        epsilon: what is added to the norm by which `u` is divided, unless `iteration` has its own.
    """
    scale, epsilon = scale_and_epsilon(iteration, epsilon)

    def run(product: Arithmetic, x: Array) -> Array:
        x, first = normalized(x, normalization, product, scale, epsilon)
        if callable(iteration):
            out: Any = iteration(x)
            return out
        small = gram and gram_saves(x.shape[0], x.shape[1], len(steps))
        return (gram_newton_schulz if small else newton_schulz)(x, steps, product, first)

    tall = u.shape[0] > u.shape[1]
    x: Any = u.T if tall else u
    if precision == "device":  # the platform is known where the program is compiled
        one, other = partial(run, Arithmetic()), partial(run, Arithmetic(bfloat16=True))
        x = jax.lax.platform_dependent(x, cpu=one, default=other)
    else:
        x = run(Arithmetic(precision == "bfloat16"), x)
    return x.T if tall else x


def normalized(x: Array, kind: Normalization, product: Arithmetic, scale: float, epsilon: Any) -> tuple[Array, Any]:
    """Return `x` with singular values of at most 1, and its Gram matrix x xᵀ if that was computed, else None.

    frobenius: x / (scale |x| + epsilon). schatten: x / |x xᵀ|^½, a closer bound. spectral: x / σ₁, exactly, which takes
    an eigenvalue decomposition. aol: each row is divided by (Σ_j |x xᵀ|_ij)^½, which changes the singular vectors.
    """
    x = x / (scale * norm(x) + epsilon)
    if kind == "frobenius":
        return x, None
    gram = product.gram(x)
    if kind == "aol":
        rows = jnp.maximum(jnp.sum(jnp.abs(gram), 1), TINY) ** -0.5
        return rows[:, None] * x, rows[:, None] * gram * rows[None, :]
    square = norm(gram) if kind == "schatten" else jnp.linalg.eigvalsh(gram)[-1]
    square = jnp.maximum(square, TINY)
    return x * square**-0.5, gram / square


def newton_schulz(x: Array, steps: Sequence[Triple], product: Arithmetic, gram: Any = None) -> Array:
    """Compute x <- a x + (b A + c A²) x with A = x xᵀ for each (a, b, c); `gram` is the first A, if it is known."""
    for a, b, c in steps:
        gram = product.gram(x) if gram is None else gram
        x = a * x + product(_polynomial(gram, b, c, product), x)
        gram = None
    return x


def gram_newton_schulz(x: Array, steps: Sequence[Triple], product: Arithmetic, gram: Any = None) -> Array:
    """Compute the same by products of the small matrix x xᵀ alone (Dao-AILab, gram-newton-schulz 2026).

    A step multiplies x by Q = a + b A + c A², and A by Q². Only after each `RESTART` steps, and at the end, x itself is
    multiplied by the product of these: rounding errors of A would grow otherwise.
    """
    q: Any = None
    r = product.gram(x) if gram is None else gram
    for i, (a, b, c) in enumerate(steps):
        if _restarts(i):
            x, q = product(q, x), None
            r = product.gram(x)
        z = _polynomial(r, b, c, product)
        q = z + a * jnp.eye(len(z), dtype=z.dtype) if q is None else product(q, z) + a * q
        if i + 1 < len(steps) and not _restarts(i + 1):
            rz = product(r, z) + a * r
            r = product(z, rz) + a * rz
    return x if q is None else product(q, x)


def _polynomial(gram: Array, b: Any, c: Any, product: Arithmetic) -> Array:
    return b * gram if isinstance(c, float) and c == 0 else b * gram + product(c * gram, gram)


def _restarts(step: int) -> bool:
    return step % RESTART == RESTART - 1


def gram_saves(rows: int, columns: int, steps: int) -> bool:
    """Whether the Gram iteration has fewer floating-point operations, for a matrix with rows <= columns."""
    restarts = sum(map(_restarts, range(steps)))
    begun = 1 + restarts  # times that Q starts anew
    small = steps + (steps - begun) + 2 * (steps - begun)  # A², Q z, and two for the next A
    large = 2 * begun
    return small * rows + large * columns < steps * (rows + 2 * columns)
