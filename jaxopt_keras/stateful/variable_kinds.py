"""Handles: one interface for our variables, Keras's, Flax's `nnx` variables and `jax.Ref`.

Variables of other libraries are recognised by their methods and modules; the libraries are not imported.
"""

import functools
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_keras.stateful.packed_variables import Buffer
from jaxopt_keras.stateful.variable import Variable


class Handle:
    """A variable of any library: its path, and how to read and write it.

    Args:
        variable: the variable.
        read: returns the array.
        write: replaces the array by one of the same shape and dtype.
        kind: the path of a variable without a path, a name and a constraint: an nnx variable or a `jax.Ref`. None: ours
            or Keras's.
    """

    def __init__(
        self, variable: Any, read: Callable[[], Any], write: Callable[[Any], Any], kind: str | None = None
    ) -> None:
        self.variable, self.read, self.write, self.kind = variable, read, write, kind
        name = kind or getattr(variable, "name", None)
        self.path = str(kind or getattr(variable, "path", None) or name or "variable")
        self.name = str(name or self.path)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.variable.shape)

    @property
    def dtype(self) -> Any:
        return jnp.dtype(self.variable.dtype)

    @property
    def constraint(self) -> Any:
        return None if self.kind else getattr(self.variable, "constraint", None)

    @property
    def trainable(self) -> bool:
        """Whether it is updated: False for a variable of any library that has `trainable=False`."""
        return bool(getattr(self.variable, "trainable", True))

    def take(self) -> Any:
        """Return the array for a call that donates it: a copy, if there are other references to it."""
        return take(self.read)


def handle(variable: Any) -> Handle:
    """Return a handle of a variable.

    Raises:
        TypeError: if `variable` is not a variable of a supported kind.
    """
    cls = type(variable)
    if isinstance(variable, (Variable, Buffer)):
        return Handle(variable, variable._raw_value, variable._store)
    if isinstance(variable, jax.Ref):
        return Handle(variable, lambda: variable[...], functools.partial(variable.__setitem__, ...), "ref")
    if hasattr(variable, "get_value") and hasattr(variable, "set_value"):
        return Handle(variable, variable.get_value, functools.partial(_set_nnx, variable), cls.__name__.lower())
    if cls.__module__.startswith("keras.") and hasattr(variable, "assign"):
        # Not by `assign`, which would copy and convert.
        return Handle(variable, lambda: variable.value, functools.partial(setattr, variable, "_value"))
    raise TypeError(
        "A variable must be a `jaxopt_keras.Variable`, a `keras.Variable` (JAX backend), a flax `nnx.Variable` or a "
        f"`jax.Ref`. Received: {cls.__module__}.{cls.__name__}. Wrap an array: `jaxopt_keras.Variable(array)`; for a "
        "pytree of arrays use the pure face, e.g. `jaxopt_keras.adam(...)`."
    )


def _set_nnx(variable: Any, value: Any) -> None:
    try:
        variable.set_value(value)
    except BaseException:  # of a hook of the variable. A step has donated the old array
        variable.set_raw_value(value)
        raise


def take(read: Callable[[], Any]) -> Any:
    """Return the array that `read` returns for a call that donates it: a copy, if there are other references to it."""
    value = read()
    return value if sys.getrefcount(value) <= _SOLE_REFERENCES else jnp.copy(value)


def _count_sole_references() -> int:
    """Return the reference count that `take` sees when an array is referenced by its variable only."""
    holder = SimpleNamespace(value=object())
    read = lambda: holder.value
    value = read()
    return sys.getrefcount(value)


_SOLE_REFERENCES = _count_sole_references()
