"""`tf.Variable`, `tf.Tensor` and the dtypes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import jaxopt_keras
from jaxopt_keras.language.sparse import IndexedSlices
from jaxopt_keras.stateful.custom.stand_ins import Tensor as Wrapped
from jaxopt_keras.stateful.custom.stand_ins import Tf2DType

NAMES = (
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "bfloat16", "float16",
    "float32", "float64", "complex64", "complex128",
)  # fmt: skip
DTYPES = {name: jnp.dtype(name) for name in NAMES} | {"half": jnp.dtype("float16"), "double": jnp.dtype("float64")}


class Variable(jaxopt_keras.Variable):
    """A `jaxopt_keras.Variable` with TF's arguments, and with `base_dtype` in its dtype."""

    def __init__(
        self,
        initial_value: Any,
        trainable: Any = True,
        *,
        name: str | None = None,
        dtype: Any = None,
        constraint: Callable[[Any], Any] | None = None,
        validate_shape: bool = True,
        shape: Any = None,
        synchronization: Any = None,
        aggregation: Any = None,
    ) -> None:
        super().__init__(initial_value, dtype=dtype, name=name, trainable=trainable is not False, constraint=constraint)

    @property
    def dtype(self) -> Any:
        return Tf2DType(super().dtype)


class _Tensors(type):
    def __instancecheck__(cls, x: Any) -> bool:
        return isinstance(x, (jax.Array, Wrapped))


class Tensor(metaclass=_Tensors):
    """The type of arrays, for `isinstance`: those of JAX, and what hooks get."""


class SparseTensor:
    """For `isinstance`: no gradient here is one. Sparse gradients are `IndexedSlices`."""


def is_sparse(tensor: Any) -> bool:
    """Whether a gradient is `IndexedSlices`."""
    return isinstance(tensor, IndexedSlices)
