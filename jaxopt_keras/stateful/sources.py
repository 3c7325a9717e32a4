"""The hyperparameters of an optimizer that are functions: schedules of the step, and functions without arguments."""

from collections.abc import Mapping
from typing import Any

import jax

from jaxopt_keras import schedules
from jaxopt_keras.language.fields import Field, scheduled
from jaxopt_keras.language.hyperparameters import schedules_of
from jaxopt_keras.stateful.variable import as_array

STAND_INS = (0.5, 2.0, 1e-3)  # numbers of which every range has one; no step uses them


class Sources:
    """Functions by the name of their hyperparameter. A step gets their values as arguments: a new one compiles nothing.

    Args:
        functions: the functions.
        fields: the declarations of their hyperparameters.
    """

    def __init__(self, functions: Mapping[str, Any], fields: Mapping[str, Field]) -> None:
        self.functions = dict(functions)
        self.fields = {name: fields[name] for name in functions}
        self._start()

    def _start(self) -> None:
        of_step = [name for name, function in self.functions.items() if schedules.is_schedule(function)]
        self._without = [name for name in self.functions if name not in of_step]
        self._of_step = jax.jit(lambda step: {name: self._value(name, self.functions[name](step)) for name in of_step})

    def _value(self, name: str, value: Any) -> Any:
        return scheduled(name, self.fields[name], as_array(value, name))

    def at(self, step: Any) -> dict[str, Any]:
        """Return the values at a step, as the compiled step takes them."""
        if not self.functions:
            return {}
        return self._of_step(step) | {name: self._value(name, self.functions[name]()) for name in self._without}

    def __contains__(self, name: str) -> bool:
        return name in self.functions

    def get(self, name: str) -> Any:
        """Return the function of a hyperparameter; None if it is a number."""
        return self.functions.get(name)

    def updated(self, functions: Mapping[str, Any], numbers: Any, fields: Mapping[str, Field]) -> "Sources":
        """Return these with other `functions`, and without those of `numbers`, which are no functions any more."""
        kept = {n: f for n, f in self.functions.items() if n not in numbers}
        return Sources(kept | dict(functions), self.fields | dict(fields))

    def __getstate__(self) -> dict[str, Any]:
        return {"functions": self.functions, "fields": self.fields}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__dict__.update(kept)
        self._start()

    def __deepcopy__(self, memo: Any) -> "Sources":
        return self  # it never changes


def separated(values: Any) -> tuple[Any, dict[str, Any]]:
    """Return a rule or options with a number in the place of each function, and these functions by name."""
    functions, fields = schedules_of(values), values.declared()
    stand_ins = {n: next(x for x in STAND_INS if x in (fields[n].range or [x])) for n in functions}
    return values.bind(stand_ins), functions
