"""Numerics of rules: small pure functions."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike


def is_inexact(x: Any) -> bool:
    """Whether `x` is an array of floats or complex numbers: only such parameters are updated."""
    return jnp.issubdtype(getattr(x, "dtype", bool), jnp.inexact)


def compute_dtype(dtype: DTypeLike) -> Any:
    """Return the dtype of arithmetic and slots for a parameter of `dtype`: at least float32.

    >>> compute_dtype("bfloat16"), compute_dtype("float64"), compute_dtype("complex64")
    (dtype('float32'), dtype('float64'), dtype('complex64'))
    """
    return jnp.dtype(jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype)


def real_dtype(dtype: DTypeLike) -> Any:
    """Return the dtype of `abs(x)` for an `x` of `dtype`."""
    return jnp.finfo(dtype).dtype


def square(x: Array) -> Array:
    """Compute |x|², real for complex `x` too."""
    return (x * x.conj()).real if jnp.iscomplexobj(x) else x * x


def squarable(x: Array, terms: int = 1) -> Array:
    """Limit finite numbers to those whose square is finite: to ±1.3e19 in float32.

    A finite gradient of 1e20 would make an average of squares infinite, and the parameter NaN in the next step.

    Args:
        terms: the number of such numbers in a sum that is squared.
    """
    limit, size = float(jnp.finfo(x.dtype).max / 2) ** 0.5 / max(terms, 1), jnp.abs(x)
    if jnp.iscomplexobj(x):
        limited = x * (limit / jnp.maximum(size, limit)).astype(x.dtype)
    else:
        limited = jnp.clip(x, -limit, limit)
    return jnp.where(size < jnp.inf, limited, x)  # neither infinity nor NaN is hidden


def mean(x: Array, axis: int, keepdims: bool = False) -> Array:
    """Compute the mean over an axis. The sum is of quotients, so that it is finite if all elements are."""
    return jnp.sum(x / x.shape[axis], axis, keepdims=keepdims)


def root(x: Array) -> Array:
    """Compute sqrt(x) for x >= 0, at least the root of the least normal number, 1e-19 in float32.

    So its derivative is finite at 0, where that of sqrt is infinite, and the derivative of sqrt(x²) NaN.
    """
    return jnp.sqrt(jnp.maximum(x, float(jnp.finfo(x.dtype).tiny)))


def hypot(x: Array, y: Array) -> Array:
    """Compute sqrt(x² + y²), also where the squares overflow."""
    great, small = jnp.maximum(jnp.abs(x), jnp.abs(y)), jnp.minimum(jnp.abs(x), jnp.abs(y))
    ratio = small / jnp.where((great == 0) | (great == jnp.inf), 1, great)
    return great * jnp.sqrt(1 + jnp.where(great == jnp.inf, 0, ratio * ratio))


def scaled_norm(*arrays: Array, dtype: Any = None) -> tuple[Array, Array]:
    """Compute the joint norm as a product `(size, unit)` of finite numbers, also where the norm itself would overflow.

    One pass over the elements sums their squares, and their squares scaled down, for the case that the first sum
    overflows. `unit` is 1, or the reciprocal of that scale, a power of two.
    """
    bits = lambda dtype: jnp.finfo(dtype).bits
    least = real_dtype(arrays[0].dtype) if dtype is None else jnp.dtype(dtype)
    own = max((real_dtype(x.dtype) for x in arrays), key=bits, default=least)  # the squares have this dtype
    widest = max(own, least, key=bits)
    parts = [part.astype(own) for x in arrays for part in ((x.real, x.imag) if jnp.iscomplexobj(x) else (x,))]
    down = 2.0 ** -(jnp.finfo(own).maxexp * 5 // 8)
    # For a constant c and one element, XLA would turn (x c)(x c) into (x x)(c c), which is infinity times 0.
    factor = jax.lax.optimization_barrier(jnp.asarray(down, own))

    def total(numbers: Iterable[Array]) -> Array:
        return sum((jnp.sum(x * x).astype(widest) for x in numbers), jnp.zeros((), widest))

    plain, scaled = total(parts), total(x * factor for x in parts)
    overflows = plain > jnp.finfo(widest).max
    squares = jnp.where(overflows, scaled, plain)
    size = jnp.where(squares == 0, 0, jnp.sqrt(jnp.where(squares == 0, 1, squares)))  # its derivative at 0 is 0
    return size, jnp.where(overflows, jnp.asarray(1 / down, widest), 1)


def norm(*arrays: Array, dtype: Any = None) -> Array:
    """Compute the joint Euclidean norm of all elements (0 without elements), also where their squares overflow.

    Args:
        dtype: the norm has this dtype, or a wider one of `abs` of an array; None: that of `abs` of the widest array.
    """
    size, unit = scaled_norm(*arrays, dtype=dtype)
    return size * unit


def rms(x: Array) -> Array:
    """Compute the root of the mean square (0 for an empty array)."""
    size, unit = scaled_norm(x)
    return size / max(x.size, 1) ** 0.5 * unit


def matmul(x: Array, y: Array) -> Array:
    """Compute x @ y in the precision of its operands; by default a TPU rounds float32 to bfloat16, a GPU to TF32."""
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)


def gathered(x: Array) -> Array:
    """Return `x` whole on each device of a mesh with explicit axes; elsewhere the compiler decides where it is."""
    return jax.sharding.reshard(x, jax.P(*[None] * x.ndim)) if any(jax.typeof(x).sharding.spec) else x


def placed_as(x: Array, like: Array) -> Array:
    """Return `x` split as `like` is in a mesh with explicit axes."""
    spec = jax.typeof(like).sharding.spec
    return x if jax.typeof(x).sharding.spec == spec else jax.sharding.reshard(x, spec)


def product(x: Array, y: Array, like: Array) -> Array:
    """Compute x @ y, split as `like` is in a mesh with explicit axes, where the axis of the sum may be split too."""
    return placed_as(matmul(gathered(x), gathered(y)), like)


def normal(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Draw normal numbers that are the same in every precision, where `jax.random.normal` draws others."""
    bits = jax.random.bits(key, shape, jnp.uint32) >> 9
    uniform = (bits.astype(dtype) + 0.5) * 2.0**-23  # exact in float32
    return 2**0.5 * jax.lax.erf_inv(2 * uniform - 1)


def ema(old: Array, new: Array, beta: Any) -> Array:
    """Compute the exponential moving average `beta old + (1 - beta) new`.

    The formula uses the complement alone: `beta` and `1 - beta`, each rounded, need not add up to one, and then the
    average of a constant would not be that constant.
    """
    return old + (1 - beta) * (new - old)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Complemented:
    """A decay rate β together with 1 - β, each rounded once.

    float32(0.999) is off by 1e-8, so `1 - 0.999` would have a relative error of 1e-5, and Adam's first steps too. Here
    the complement is computed in the host's float64, and powers use it: β^t = exp(t log1p(-(1 - β))).

    >>> beta = complemented(0.999, jnp.float32)
    >>> print(f"{1 - beta**1.0:.8f} {1 - jnp.float32(0.999):.8f}")
    0.00100000 0.00099999
    """

    value: Array
    complement: Array

    def __rsub__(self, other: Any) -> Array:
        return self.complement if isinstance(other, int) and other == 1 else other - self.value

    def __pow__(self, t: Any) -> "Complemented":
        return Complemented(jnp.exp(t * self.log()), -jnp.expm1(t * self.log()))

    def log(self) -> Array:
        """Compute log β, also of a β near 1: the average's half-life is log(0.5) / log β updates."""
        # The smaller of the two has the smaller rounding error.
        return jnp.where(self.value < 0.5, jnp.log(self.value), jnp.log1p(-self.complement))

    def __mul__(self, other: Any) -> Array:
        return self.value * other

    __rmul__ = __mul__

    def __rtruediv__(self, other: Any) -> Array:
        return other / self.value

    def astype(self, dtype: DTypeLike) -> "Complemented":
        return Complemented(self.value.astype(dtype), self.complement.astype(dtype))


class Complements(NamedTuple):
    """A `Complemented` in a state: a plain pair, which every serializer of pytrees accepts."""

    value: Array
    complement: Array


def complemented(beta: Any, dtype: DTypeLike) -> Complemented:
    """Convert `beta` to a `Complemented` of `dtype`; exact where `beta` is a Python float."""
    return Complemented(jnp.asarray(beta, dtype), jnp.asarray(1 - beta, dtype))
