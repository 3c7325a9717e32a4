"""Hyperparameters: a dataclass whose numbers are run-time values of the compiled step, or functions of the step."""

import dataclasses
from typing import Any, Self, dataclass_transform

from jax import Array

from jaxopt_keras.language.fields import RATE, TRACED, Field, as_scalar, fields_of, is_function, scheduled
from jaxopt_keras.language.printing import arguments_of, call


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
class Hyperparameters:
    """A frozen dataclass whose floats are run-time values. Subclasses need no decorator.

    A float may be given as a function of the step, which each step computes. One that is given as a JAX array stays an
    array, which may be traced: see `Kernel`.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True, repr=False)(cls)

    def __post_init__(self) -> None:
        for name, field in fields_of(type(self)).items():
            value = getattr(self, name)
            if is_function(field, value):
                continue
            checked = field.check(name, value)
            object.__setattr__(self, name, value if field.traced and isinstance(value, Array) else checked)

    def __repr__(self) -> str:
        return call(type(self).__name__, *arguments_of(self, always=RATE))

    def declared(self) -> dict[str, Field]:
        """Return the declarations of all hyperparameters, by name."""
        return fields_of(type(self))

    def _is_traced(self, name: str, field: Field) -> bool:
        value = getattr(self, name)
        fixed = isinstance(value, float) and value == field.fixed
        return field.traced and value is not None and not fixed and not callable(value)

    def traced(self) -> dict[str, Any]:
        """Return the values that are arguments of the compiled step, by name."""
        return {n: getattr(self, n) for n, f in self.declared().items() if self._is_traced(n, f)}

    def skeleton(self) -> Self:
        """Return a copy without its numbers: two that can share one compiled program are equal."""
        return self.bind(dict.fromkeys(self.traced(), TRACED))

    def bind(self, values: dict[str, Any]) -> Self:
        """Return a copy with other `values`, unchecked; names that it does not have are ignored."""
        bound = object.__new__(type(self))
        for name in fields_of(type(self)):
            object.__setattr__(bound, name, values.get(name, getattr(self, name)))
        return bound

    def replaced(self, **values: Any) -> Self:
        """Return a copy with other values, checked."""
        itself: Any = self  # a dataclass, which type checkers do not see here
        return dataclasses.replace(itself, **values)

    def arrays(self) -> dict[str, Any]:
        """Return the traced values as scalars of the default float dtype, decays with their complements."""
        return {name: as_scalar(self.declared()[name], value) for name, value in self.traced().items()}


def with_python_numbers(values: Any) -> Any:
    """Return a copy with Python numbers in place of JAX arrays."""
    found = {n: getattr(values, n) for n in values.declared()}
    return values.bind({n: float(x) for n, x in found.items() if isinstance(x, Array)})


def schedules_of(values: Hyperparameters) -> dict[str, Any]:
    """Return the values that are functions of the step, by name."""
    return {n: getattr(values, n) for n, f in values.declared().items() if is_function(f, getattr(values, n))}


def scheduled_at(values: Hyperparameters, step: Any) -> dict[str, Any]:
    """Return what these functions give at a step, in the form of `arrays`."""
    fields = values.declared()
    return {n: scheduled(n, fields[n], function(step)) for n, function in schedules_of(values).items()}
