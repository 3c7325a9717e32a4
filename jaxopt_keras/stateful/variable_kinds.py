"""One face for the kinds of variables that an optimizer updates: ours, Keras's, Flax's `nnx`, and `jax.Ref`.

The other libraries are recognised by what their variables can do, and are not imported.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_keras.stateful.packed_variables import Buffer
from jaxopt_keras.stateful.variable import Variable


class Handle:
    """A variable of any kind: how it is read and written, and what it is called."""

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
        return self.variable.value

    def write(self, value: Any) -> None:
        self.variable.assign(value)

    def take(self) -> Any:
        """The array, for a call that will donate it: a copy where anybody else holds it too."""
        value = self.read()
        return value if sys.getrefcount(value) <= _ALONE else jnp.copy(value)

    @property
    def constraint(self) -> Any:
        return getattr(self.variable, "constraint", None)


class VariableHandle(Handle):
    """Of a `Variable`, or of a `Buffer` of them."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.variable._peek().shape

    def read(self) -> Any:
        return self.variable._peek()

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
        return self.read()  # a read of a Ref is a copy already

    @property
    def constraint(self) -> Any:
        return None


def handle(variable: Any) -> Handle:
    """The handle of a variable.

    Raises:
        TypeError: for anything that is not a variable.
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


def _calibrate() -> int:
    """The reference count that `Handle.take` sees of an array that only its variable holds."""

    class Probe(Handle):
        seen = 0

        def read(self) -> Any:
            return self.variable.value

        def take(self) -> Any:
            value = self.read()
            type(self).seen = sys.getrefcount(value)
            return value

    class Holder:
        path = name = "probe"

        def __init__(self) -> None:
            self.value = object()

    Probe(Holder()).take()
    return Probe.seen


_ALONE = _calibrate()
