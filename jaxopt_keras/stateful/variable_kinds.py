"""Handles: one interface for our variables, Keras's, Flax's `nnx` variables and `jax.Ref`.

Variables of other libraries are recognised by their methods and modules; the libraries are not imported.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_keras.stateful.packed_variables import Buffer
from jaxopt_keras.stateful.variable import Variable


class Handle:
    """A variable of any library: its path, and how to read and write it."""

    def __init__(self, variable: Any) -> None:
        self.variable = variable
        self.path: str = str(getattr(variable, "path", None) or getattr(variable, "name", None) or "variable")
        self.name: str = str(getattr(variable, "name", None) or self.path)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.variable.shape)

    @property
    def dtype(self) -> Any:
        return jnp.dtype(self.variable.dtype)

    def read(self) -> Any:
        """Return the array."""
        return self.variable.value

    def write(self, value: Any) -> None:
        """Replace the array by one of the same shape and dtype."""
        self.variable.assign(value)

    def take(self) -> Any:
        """Return the array for a call that donates it: a copy, if there are other references to it."""
        value = self.read()
        return value if sys.getrefcount(value) <= _SOLE_REFERENCES else jnp.copy(value)

    @property
    def constraint(self) -> Any:
        return getattr(self.variable, "constraint", None)


class VariableHandle(Handle):
    """Handle of a `Variable` or a `Buffer`."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.variable._raw_value().shape

    def read(self) -> Any:
        return self.variable._raw_value()

    def write(self, value: Any) -> None:
        self.variable._store(value)


class KerasHandle(Handle):
    def write(self, value: Any) -> None:
        self.variable._value = value  # `assign` would copy and convert


class NnxHandle(Handle):
    def __init__(self, variable: Any) -> None:
        super().__init__(variable)
        self.path = self.name = type(variable).__name__.lower()

    def read(self) -> Any:
        return self.variable.get_value()

    def write(self, value: Any) -> None:
        self.variable.set_value(value)

    @property
    def constraint(self) -> Any:
        return None


class RefHandle(Handle):
    def __init__(self, variable: Any) -> None:
        super().__init__(variable)
        self.path = self.name = "ref"

    def read(self) -> Any:
        return self.variable[...]

    def write(self, value: Any) -> None:
        self.variable[...] = value

    def take(self) -> Any:
        return self.read()  # reading a Ref copies it

    @property
    def constraint(self) -> Any:
        return None


def handle(variable: Any) -> Handle:
    """Return a handle of a variable.

    Raises:
        TypeError: if `variable` is not a variable of a supported kind.
    """
    module = type(variable).__module__
    if isinstance(variable, (Variable, Buffer)):
        return VariableHandle(variable)
    if isinstance(variable, jax.Ref):
        return RefHandle(variable)
    if hasattr(variable, "get_value") and hasattr(variable, "set_value"):
        return NnxHandle(variable)
    if module.startswith("keras.") and hasattr(variable, "assign"):
        return KerasHandle(variable)
    raise TypeError(
        "A variable must be a `jaxopt_keras.Variable`, a `keras.Variable` (JAX backend), a flax `nnx.Variable` or a "
        f"`jax.Ref`. Received: {type(variable).__module__}.{type(variable).__name__}. Wrap an array: "
        "`jaxopt_keras.Variable(array)`; for a pytree of arrays use the pure face, e.g. `jaxopt_keras.adam(...)`."
    )


def _count_sole_references() -> int:
    """Return the reference count that `Handle.take` sees when an array is referenced by its variable only."""

    class Probe(Handle):
        references = 0

        def read(self) -> Any:
            return self.variable.value

        def take(self) -> Any:
            value = self.read()
            type(self).references = sys.getrefcount(value)
            return value

    class Holder:
        path = name = "probe"

        def __init__(self) -> None:
            self.value = object()

    Probe(Holder()).take()
    return Probe.references


_SOLE_REFERENCES = _count_sole_references()
