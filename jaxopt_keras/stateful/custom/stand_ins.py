"""Stand-ins for variables in hooks: variables of other libraries with the interface of ours, and with TF's dtypes."""

from typing import Any

import jax.numpy as jnp

from jaxopt_keras.stateful.variable import ArrayLike


class StandIn(ArrayLike):
    """A variable of another library, with the interface of ours, for hooks. For TF 2's hooks it has TF's dtype."""

    def __init__(self, optimizer: Any, path: str) -> None:
        self.optimizer, self.path = optimizer, path
        self.name = path.rsplit("/", 1)[-1]
        self.trainable = True

    @property
    def dtype(self) -> Any:
        dtype = super().dtype
        return Tf2DType(dtype) if hasattr(self.optimizer, "_resource_apply_dense") else dtype

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


class Tf2DType:
    """A dtype with TF's attribute `base_dtype`, which NumPy and JAX accept as a dtype."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = self.base_dtype = jnp.dtype(dtype)
        self.name = self.dtype.name

    def __eq__(self, other: Any) -> bool:
        return self.dtype == getattr(other, "base_dtype", other)

    def __hash__(self) -> int:
        return hash(self.dtype)
