"""The scope in which variables are traced: a map from variables to values that a transformation of JAX may trace."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any


class Scope:
    """A map from variables to values. While the scope is active, these variables read and write the mapped values.

    A variable in a packed buffer that is mapped is read from the buffer's value and written into it.
    """

    def __init__(self, variables: list[Any], values: list[Any]) -> None:
        self.variables = {id(v): v for v in variables}
        self.values = dict(zip(self.variables, values, strict=True))
        self.read_ids: set[int] = set()
        self.written: dict[int, Any] = {}  # id -> variable, in the order of the first write
        self.unmapped: dict[int, Any] = {}  # id -> variable: used within the scope, but not in its map
        self.parent: Scope | None = None  # the scope around this one, while this one is active

    def read(self, variable: Any, outside: Callable[[Any], Any] | None = None) -> Any:
        """Return the value of a variable; of an unmapped one, its value outside the scope.

        Args:
            variable: the variable.
            outside: reads that value; None: the scope around this one does, for our variables.
        """
        key, buffer = id(variable), getattr(variable, "buffer", None)
        self.read_ids.add(key)
        if key in self.values:
            return self.values[key]
        if buffer is None:
            self.unmapped[key] = variable
        else:
            packed = self.read(buffer)
            if id(buffer) in self.values:
                # Split into all variables at once: their gradient is then one concatenation.
                self.values |= buffer.split(packed)
                return self.values[key]
        return (outside or self._outside)(variable)

    def _outside(self, variable: Any) -> Any:
        return variable._safe_value() if self.parent is None else self.parent.read(variable)

    def write(self, variable: Any, value: Any) -> None:
        """Map `variable` to `value`, within this scope only."""
        key, buffer = id(variable), getattr(variable, "buffer", None)
        if buffer is not None and key not in self.variables:
            self._set(buffer, buffer.parts[key].write(self.read(buffer), value))
            self.values[key] = value
            return
        for packed_key in getattr(variable, "parts", ()):  # values that were read from the buffer's old value
            self.values.pop(packed_key, None)
        self._set(variable, value)

    def _set(self, variable: Any, value: Any) -> None:
        key = id(variable)
        if key not in self.variables:
            self.unmapped[key] = variable
        self.values[key] = value
        self.written[key] = variable

    @contextlib.contextmanager
    def active(self) -> Iterator["Scope"]:
        """Make this the scope that variables of this thread use."""
        self.parent = _active.get()
        token = _active.set(self)
        try:
            yield self
        finally:
            _active.reset(token)


_active: contextvars.ContextVar[Scope | None] = contextvars.ContextVar("scope", default=None)
active_scope = _active.get
"""Return the active scope, or None."""
