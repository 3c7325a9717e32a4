"""PSGD Kron: gradients whitened by a factor for each axis, which is fitted on random probes."""

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxopt_keras.language.numerics import ema, matmul, normal, root
from jaxopt_keras.language.rule import Clock, Count, Decay, Exact, Rate, Rule, Signed, Within

NAMES = tuple(f"factor_{axis}" for axis in range(5))
NOISE = float(np.finfo(np.float32).eps) ** 0.5  # of the gradient that a factor is fitted on
BALANCED = 100  # updates from one balance to the next


class Kron(Rule):
    """PSGD Kron (Li 2015, arXiv:1512.04202; Pooladzandi & Li 2024, arXiv:2402.04553), as in kron-torch 0.3.3.

        m <- beta_1 m + (1 - beta_1) g          h = m / (1 - beta_1^t)
        u = Pᵀ P h Qᵀ Q,  u <- u min(1, 1.1 / rms(u))
        p <- p - lr (u + weight_decay p)        weight_decay not for vectors

    P and Q, the slots `factor_0` and `factor_1`, are triangular. Some steps first fit them, with normal numbers V:

        h <- h + 3.5e-4 mean(|h|) V,  A = P h Qᵀ,  B = P^{-T} V Q^{-1}
        P <- P - precond_lr triu(A Aᵀ - B Bᵀ) / norm(A Aᵀ + B Bᵀ) P

    Q likewise, with Aᵀ A and Bᵀ B. `norm` is a lower bound of the greatest eigenvalue. The first 500 steps fit; of
    later ones a part, which falls from 1 to 0.03 at step 4000. An array whose h is 0 keeps its factors, and every 100
    steps the factors of an array get one size (in the release one step of a hundred, at random). V is drawn anew for
    each array and step, from the option `seed`.

    A factor is a vector, its diagonal, if its axis is longer than `max_size_triangular` or 1 long, or the array has
    fewer than `min_ndim_triangular` axes. Arrays of more than two axes are seen as matrices, or with `merge_dims=False`
    have a factor for each axis, from the fifth on a common one.

    Args:
        beta_1: the decay of `momentum`, the average of gradients.
        preconditioner_update_probability: the part of the steps that fit the factors: a number above 0, or a function
            of the step. None: the one above.
        max_size_triangular: the longest axis with a triangular factor, which has the square of its length.
        min_ndim_triangular: the least number of axes of an array with triangular factors.
        memory_save_mode: which other factors are diagonal: none of them; that of the longest axis if it is longer than
            all others, "smart_one_diag"; that of the longest axis, "one_diag"; or all, "all_diag".
        momentum_into_precond_update: fit the factors on h; False: on the gradient, and add no noise to h.
        precond_lr: the rate of the factors.
        precond_init_scale: the size of the first product of all factors.
        merge_dims: see arrays of more than two axes as matrices: the last axis apart, or the first one, if that is
            nearer to a square of its size.
    """

    variants: ClassVar = ("authors",)
    grain: ClassVar = "matrix"
    complex_ok: ClassVar = False
    takes: ClassVar = ("key",)
    shapes: ClassVar = ((2,) * len(NAMES), (2, 2))

    learning_rate: Rate = 3e-4
    beta_1: Decay = 0.9
    preconditioner_update_probability: Annotated[float, Within(above=0, high=1)] | None = None
    max_size_triangular: Count = 8192
    min_ndim_triangular: Count = 2
    memory_save_mode: Literal[None, "smart_one_diag", "one_diag", "all_diag"] = None
    momentum_into_precond_update: bool = True
    precond_lr: Rate = 0.1
    precond_init_scale: Annotated[float, Within(above=0)] = 1.0
    merge_dims: bool = True

    class State(NamedTuple):
        momentum: Signed
        factor_0: Exact | None = None
        factor_1: Exact | None = None
        factor_2: Exact | None = None
        factor_3: Exact | None = None
        factor_4: Exact | None = None

    class Scalars(NamedTuple):
        waited: Any  # steps since the last fit; 0 in a step that fits

    def scalars(self) -> Scalars:
        return self.Scalars(0.0)

    def advance(self, scalars: Scalars, at: Clock) -> Scalars:
        part = self.preconditioner_update_probability
        if part is None:
            part = jnp.clip(jnp.exp(-0.001 * (at.t - 501)), 0.03, 1)
        waited = scalars.waited + 1
        return self.Scalars(jnp.where(waited >= 1 / part, 0, waited))

    def seen(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape with an axis for each factor."""
        if len(shape) > 2 and self.merge_dims:
            last, first = (int(np.prod(shape[:-1])), shape[-1]), (shape[0], int(np.prod(shape[1:])))
            return last if last[1] - last[0] <= first[1] - first[0] else first
        most = len(NAMES)
        return (*shape[: most - 1], int(np.prod(shape[most - 1 :]))) if len(shape) >= most else shape or (1,)

    def diagonal(self, shape: tuple[int, ...]) -> list[bool]:
        """Return for each axis of a `seen` shape whether its factor is diagonal."""
        order, mode = np.argsort(shape), self.memory_save_mode
        is_longest = len(shape) > 1 and shape[order[-1]] > shape[order[-2]]
        saved = mode == "one_diag" or (mode == "smart_one_diag" and is_longest)
        others = [mode == "all_diag" or (saved and axis == order[-1]) for axis in range(len(shape))]
        few = len(shape) < self.min_ndim_triangular
        return [few or n == 1 or n > self.max_size_triangular or x for n, x in zip(shape, others, strict=True)]

    def about(self, p: Any) -> str:
        shape = self.seen(p.shape)
        sizes = [f"{n}{' diagonal' * x}" for n, x in zip(shape, self.diagonal(shape), strict=True)]
        return f"factors of {' x '.join(sizes)}"

    def init(self, p: Array) -> State:
        shape = self.seen(p.shape)
        size = self.precond_init_scale ** (1 / len(shape))
        vectors = [jnp.full(n, size, p.dtype) for n in shape]
        diagonal = self.diagonal(shape)
        factors = [q if single else jnp.diag(q) for q, single in zip(vectors, diagonal, strict=True)]
        return self.State(jnp.zeros_like(p), *factors)

    def decoupled(self, weight_decay: Any) -> None:
        return None

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        if not p.size:
            return g, s
        m = ema(s.momentum, g, self.beta_1)
        h, factors = m / (1 - self.beta_1**at.t), [x for x in s[1:] if x is not None]
        fitted_on = h if self.momentum_into_precond_update else g

        def fit() -> tuple[Array, list[Array]]:
            is_moving = jnp.any(fitted_on != 0)
            probe = normal(at.key, g.shape, g.dtype)
            noised = fitted_on + NOISE * jnp.sum(jnp.abs(fitted_on) / g.size) * probe
            shape = self.seen(g.shape)
            new = fitted(balanced(factors, at.t), noised.reshape(shape), probe.reshape(shape), self.precond_lr)
            new = [jnp.where(is_moving, x, q) for x, q in zip(new, factors, strict=True)]
            return noised if self.momentum_into_precond_update else h, new

        # Which steps fit depends on the clock alone, so that all arrays fit in one branch.
        h, factors = jax.lax.cond(at.scalars.waited == 0, fit, lambda: (h, factors))
        u = h.reshape(self.seen(g.shape))
        for axis, q in enumerate(factors):
            u = along(u, axis, lambda x, q=q: q[:, None] ** 2 * x if q.ndim == 1 else matmul(q.T, matmul(q, x)))
        u = u.reshape(p.shape)
        u = u * jnp.minimum(1, 1.1 / (at.rms(u) + 1e-12))
        if at.weight_decay is not None and p.ndim > 1:
            u = u + at.weight_decay * p
        return -at.lr * u, self.State(m, *factors)


def along(x: Array, axis: int, function: Any) -> Array:
    """Apply a function of matrices to `x` with its axis as rows."""
    moved = jnp.moveaxis(x, axis, 0)
    return jnp.moveaxis(function(moved.reshape(moved.shape[0], -1)).reshape(moved.shape), 0, axis)


def solved(q: Array, x: Array) -> Array:
    """Compute q^{-T} x for an upper triangular q."""
    return jax.scipy.linalg.solve_triangular(q, x, trans=1)


def least_norm(x: Array) -> Array:
    """Compute a lower bound of the greatest eigenvalue of a symmetric matrix of which no element is below 0 alone."""
    greatest = jnp.max(jnp.abs(x))
    x = x / greatest
    column = x[:, jnp.argmax(jnp.sum(x * x, 0))][:, None]
    column = matmul(x.T, column)
    return root(jnp.sum(matmul(x, column / root(jnp.sum(column * column))) ** 2)) * greatest


def balanced(factors: list[Array], t: Array) -> list[Array]:
    """Return the factors, every so often with one greatest element, their product unchanged."""
    if len(factors) < 2:
        return factors
    sizes = [jnp.max(jnp.abs(q)) for q in factors]
    mean = jnp.exp(sum(jnp.log(x) for x in sizes) / len(sizes))
    return [jnp.where(t % BALANCED == 0, mean / x, 1) * q for q, x in zip(factors, sizes, strict=True)]


def fitted(factors: list[Array], h: Array, probe: Array, rate: Any) -> list[Array]:
    """Return factors that are a step nearer to those by which `h` is white."""
    a, b = h, probe
    for axis, q in enumerate(factors):
        a = along(a, axis, lambda x, q=q: q[:, None] * x if q.ndim == 1 else matmul(q, x))
        b = along(b, axis, lambda x, q=q: x / q[:, None] if q.ndim == 1 else solved(q, x))
    unit = jnp.maximum(jnp.max(jnp.abs(a)), jnp.max(jnp.abs(b)))  # squares are finite
    a, b, new = a / unit, b / unit, []
    for axis, q in enumerate(factors):
        rows_a, rows_b = (jnp.moveaxis(x, axis, 0).reshape(x.shape[axis], -1) for x in (a, b))
        if q.ndim == 1:
            of_a, of_b = jnp.sum(rows_a * rows_a, 1), jnp.sum(rows_b * rows_b, 1)
            change = (of_a - of_b) * q / jnp.max(of_a + of_b)
        else:
            of_a, of_b = matmul(rows_a, rows_a.T), matmul(rows_b, rows_b.T)
            change = matmul(jnp.triu(of_a - of_b) / least_norm(of_a + of_b), q)
        new.append(q - rate * change)
    return new
