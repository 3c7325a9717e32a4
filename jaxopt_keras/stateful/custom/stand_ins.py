"""Objects that hooks get in the place of variables and gradients, where their interface is another library's.

A hook gets our variables themselves, and stand-ins for those of other libraries, with the interface of ours. In TF 2's
hooks, and in classes derived from `interop.tensorflow`, variables and gradients have TensorFlow's dtypes and shapes.
"""

import functools
import sys
from types import ModuleType
from typing import Any

import jax.numpy as jnp

from jaxopt_keras.stateful.custom.errors import WITHOUT, HookError
from jaxopt_keras.stateful.custom.overrides import is_library, overrides
from jaxopt_keras.stateful.operators import in_tensor, results_in, value_of
from jaxopt_keras.stateful.variable import ArrayLike

INTEROP = "jaxopt_keras.interop.tensorflow"


class Tf2DType:
    """A dtype with TF's attribute `base_dtype`, which NumPy and JAX accept as a dtype."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = self.base_dtype = jnp.dtype(dtype)
        self.name = self.dtype.name
        self.is_floating = bool(jnp.issubdtype(self.dtype, jnp.floating))
        self.is_complex = bool(jnp.issubdtype(self.dtype, jnp.complexfloating))

    def __eq__(self, other: Any) -> bool:
        return self.dtype == getattr(other, "base_dtype", other)

    def __hash__(self) -> int:
        return hash(self.dtype)

    def __repr__(self) -> str:
        return f"tf.{self.name}"


class Tensor(ArrayLike):
    """An array with TF's interface: `numpy()`, a shape with `as_list`, a dtype with `base_dtype`."""

    name = path = "tensor"
    __array_priority__ = 100  # arithmetic with NumPy's arrays is that of this class

    def __init__(self, array: Any) -> None:
        self.array = array

    def _raw_value(self) -> Any:
        return self.array

    def _scoped_value(self) -> Any:
        return self.array

    @property
    def value(self) -> Any:
        return self.array

    def __call__(self) -> Any:
        """Return the array: `variable.value()` is a call in TF 2."""
        return self.array

    @property
    def dtype(self) -> Any:
        return Tf2DType(self.array.dtype)

    def assign(self, value: Any, use_locking: Any = None, name: Any = None, read_value: bool = True) -> Any:
        raise HookError(
            "A tensor, such as the learning rate of a step, cannot be assigned. If it is the result of a `tf.cond` "
            f"whose branches return variables, {WITHOUT}."
        )

    def _store(self, value: Any) -> None:
        self.assign(value)


class StandIn(ArrayLike):
    """A variable in a hook, with the interface of ours; for TensorFlow's hooks with TF's."""

    def __init__(self, optimizer: Any, path: str) -> None:
        self.optimizer, self.path = optimizer, path
        self.name = path.rsplit("/", 1)[-1]
        self.trainable = True
        self.constraint = None
        self.device = ""

    @property
    def value(self) -> Any:
        array = value_of(super().value)
        return Tensor(array) if wants_tensors(self.optimizer) else array

    @property
    def dtype(self) -> Any:
        dtype = super().dtype
        return Tf2DType(dtype) if wants_tensors(self.optimizer) else dtype

    def _raw_value(self) -> Any:
        return self.optimizer._handles[self.path].read()

    def _store(self, value: Any) -> None:
        self.optimizer._handles[self.path].write(value)

    def __reduce__(self) -> Any:
        return stand_in, (self.optimizer, self.path)


def stand_in(optimizer: Any, path: str) -> StandIn:
    """Return the stand-in for the variable at `path`. There is only one: a scope identifies variables by `id`."""
    stand_ins = optimizer.__dict__.setdefault("_stand_ins", {})
    if path not in stand_ins:
        stand_ins[path] = StandIn(optimizer, path)
        optimizer.__dict__.setdefault("_keys", {})[id(stand_ins[path])] = path
    return stand_ins[path]


def wants_tensors(optimizer: Any) -> bool:
    """Whether the hooks of an optimizer use TensorFlow's dtypes."""
    return overrides(type(optimizer), "_resource_apply_dense") or uses_tensorflow(type(optimizer))


def as_tensor(g: Any) -> Any:
    """Return an array as running hooks get it."""
    return g if hasattr(g, "indices") else in_tensor(value_of(g))


def tensors_of(optimizer: Any) -> Any:
    """Return a context in which arithmetic has the results that the hooks of `optimizer` want."""
    return results_in(Tensor if uses_tensorflow(type(optimizer)) else None)


@functools.cache
def uses_tensorflow(cls: type) -> bool:
    """Whether the file of a class of the user's imports `interop.tensorflow`."""
    modules = [vars(sys.modules.get(c.__module__, object)).values() for c in cls.__mro__ if not is_library(c)]
    return any(
        getattr(x, "__name__", "") == INTEROP for values in modules for x in [*values] if isinstance(x, ModuleType)
    )
