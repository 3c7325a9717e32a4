"""Small pure helpers for the arithmetic of rules."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike


def compute_dtype(dtype: DTypeLike) -> Any:
    """The dtype that arithmetic and slots have for a parameter of `dtype`: at least float32.

    >>> compute_dtype("bfloat16"), compute_dtype("float64"), compute_dtype("complex64")
    (dtype('float32'), dtype('float64'), dtype('complex64'))
    """
    return jnp.dtype(jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype)


def square(x: Array) -> Array:
    """|x|², real for complex `x` too."""
    return (x * x.conj()).real if jnp.iscomplexobj(x) else x * x


def norm(x: Array) -> Array:
    """The Euclidean norm of all elements (0 for an empty array)."""
    return jnp.sqrt(jnp.sum(square(x)))


def rms(x: Array) -> Array:
    """The root of the mean square (0 for an empty array)."""
    return jnp.sqrt(jnp.sum(square(x)) / max(x.size, 1))


def ema(old: Array, new: Array, beta: Any) -> Array:
    """The exponential moving average `beta old + (1 - beta) new`.

    Written with the complement alone, so that the average of a constant is that constant: `beta` and `1 - beta`, each
    rounded, need not add up to one.
    """
    return old + (1 - beta) * (new - old)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Complemented:
    """A decay rate β carried together with 1 - β, each rounded once.

    float32(0.999) is off by 1e-8, which makes `1 - 0.999` wrong by 1e-5 and Adam's first steps with it. Here the
    complement comes from the host's doubles, and powers go through it: β^t = exp(t log1p(-(1 - β))).

    >>> beta = complemented(0.999, jnp.float32)
    >>> print(f"{1 - beta**1.0:.8f} {1 - jnp.float32(0.999):.8f}")
    0.00100000 0.00099999
    """

    value: Array
    complement: Array

    def __rsub__(self, other: Any) -> Array:
        return self.complement if isinstance(other, int) and other == 1 else other - self.value

    def __pow__(self, t: Any) -> "Complemented":
        # Of the two, the one that is small is known to more digits.
        log = t * jnp.where(self.value < 0.5, jnp.log(self.value), jnp.log1p(-self.complement))
        return Complemented(jnp.exp(log), -jnp.expm1(log))

    def __mul__(self, other: Any) -> Array:
        return self.value * other

    __rmul__ = __mul__

    def __rtruediv__(self, other: Any) -> Array:
        return other / self.value

    def astype(self, dtype: DTypeLike) -> "Complemented":
        return Complemented(self.value.astype(dtype), self.complement.astype(dtype))


def complemented(beta: Any, dtype: DTypeLike) -> Complemented:
    """`beta` as a `Complemented` of `dtype`; exact where `beta` is a Python float."""
    return Complemented(jnp.asarray(beta, dtype), jnp.asarray(1 - beta, dtype))
