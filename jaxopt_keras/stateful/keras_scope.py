"""The active scope for Keras's variables too."""

import contextlib
import functools
import sys
from collections.abc import Iterator
from typing import Any

from jaxopt_keras.stateful.scope import Scope


@contextlib.contextmanager
def mapped(scope: Scope) -> Iterator[Scope]:
    """Make `scope` the active one, for Keras's variables too."""
    keras_scope = _keras_scope()(scope) if "keras" in sys.modules else contextlib.nullcontext()
    with scope.active(), keras_scope:
        yield scope


@functools.cache
def _keras_scope() -> Any:
    """Return a class of Keras scopes that map Keras's variables as a `Scope` does. Keras is imported only here."""
    import keras

    class KerasScope(keras.StatelessScope):
        def __init__(self, scope: Scope) -> None:
            super().__init__(initialize_variables=False)
            self.scope = scope

        def get_current_value(self, variable: Any) -> Any:
            return self.scope.read(variable, self.outside)

        def outside(self, variable: Any) -> Any:
            if variable._value is None:
                raise ValueError(f"`{variable.path}` is created inside the loss. Build the model first: call it once.")
            outer = self.original_scope
            return variable._value if outer is None else outer.get_current_value(variable)

        def add_update(self, update: tuple[Any, Any]) -> None:
            self.scope.write(*update)

    return KerasScope
