"""Variables that a user's class made itself and keeps in attributes: they become part of the optimizer's state.

The array moves into the state, as a scalar with the name of the attribute, and the variable becomes a view of it. So it
is traced, saved, copied and sharded like any other part of the state.
"""

import functools
import re
from typing import Any

import jax.numpy as jnp

from jaxopt_keras.stateful.state_views import Place, View, view
from jaxopt_keras.stateful.variable import Variable, deduplicated, value_of


class Adopted(View):
    """The view of an adopted variable: to the variable it is a buffer with one part (`packed_variables`)."""

    adopts = True

    def __init__(self, optimizer: Any, place: Place, variable: Any) -> None:
        super().__init__(optimizer, place)
        self.variable = variable
        self.parts = {id(variable): Whole()}

    def read_slice(self, variable: Any) -> Any:
        """Return the array."""
        return value_of(self)

    def write_slice(self, variable: Any, value: Any) -> None:
        """Replace the array."""
        self._store(value)

    def split(self, packed: Any) -> dict[int, Any]:
        """Return the array by the id of the variable."""
        return {id(self.variable): packed}


class Whole:
    """The part of a buffer that is all of it."""

    def write(self, buffer: Any, value: Any) -> Any:
        """Return the buffer's array after the part is replaced."""
        return value


def is_adoptable(x: Any) -> bool:
    """Whether `x` is a variable of ours or of Keras that no optimizer or buffer holds."""
    if isinstance(x, Variable):
        return x.buffer is None
    return is_keras_variable(x) and getattr(x, "buffer", None) is None


def is_keras_variable(x: Any) -> bool:
    return type(x).__module__.startswith("keras.") and hasattr(x, "assign") and hasattr(x, "_value")


def adopt(optimizer: Any, variable: Any, path: str) -> None:
    """Move the array of a variable into the state of `optimizer`, under a name made from `path`."""
    name = deduplicated("_".join(re.findall(r"\w+", path)), optimizer._state.scalars)
    place = ("scalars", name)
    value = jnp.copy(value_of(variable) if isinstance(variable, Variable) else variable.value)
    optimizer._set_state(optimizer._state._replace(scalars=optimizer._state.scalars | {name: value}))
    optimizer._record_name(name)
    buffer = optimizer._views[place] = Adopted(optimizer, place, variable)
    if isinstance(variable, Variable):
        variable.pack_into(buffer)
    else:
        variable.buffer = buffer
        object.__setattr__(variable, "__class__", _with_buffer(type(variable)))


@functools.cache
def _with_buffer(cls: Any) -> Any:
    """Return a class of Keras variables whose array is that of their `buffer`."""

    def read(self: Any) -> Any:
        return value_of(self.buffer)

    def write(self: Any, value: Any) -> None:
        self.buffer.assign(value)

    def reduce(self: Any) -> Any:
        return view, (self.buffer.optimizer, self.buffer.place)

    return type(
        cls.__name__, (cls,), {"_value": property(read, write), "__reduce__": reduce, "__module__": cls.__module__}
    )
