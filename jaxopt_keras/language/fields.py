"""The types of hyperparameters: the range of a number, and how it is kept."""

import dataclasses
import functools
import math
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from jaxopt_keras.language.numerics import complemented
from jaxopt_keras.language.other_names import PARAMS_FIRST, holds_arrays


class Within(NamedTuple):
    """The legal range of a number: at least `low`, at most `high`, or strictly `above` and `below` them."""

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def __contains__(self, x: Any) -> bool:
        return self.low <= x <= self.high and self.above < x < self.below

    def __str__(self) -> str:
        left = f"({self.above}" if self.above >= self.low else f"[{self.low}"
        right = f"{self.below})" if self.below <= self.high else f"{self.high}]"
        return f"{left}, {right}"


class Marker(NamedTuple):
    """A named property of a hyperparameter."""

    name: str


COMPLEMENT = Marker("complement")  # kept together with 1 - x (see numerics.Complemented)


class Fixed(NamedTuple):
    """A number that is part of the program, instead of a run-time value, if it is given at construction."""

    value: float


class Read(NamedTuple):
    """A function that validates a value, and returns it as it is stored."""

    function: Callable[[Any], Any]
    searched: bool = False  # its values are regular expressions that are searched for in paths


OFF_AT_ZERO = Fixed(0.0)  # switches the feature, and its slot, off

# Every number is a run-time value, so that a new value never compiles a new program.
Number = Annotated[float, Within(above=-math.inf, below=math.inf)]
Rate = Annotated[float, Within(0, below=math.inf)]
Amount = Annotated[float, Within(0, below=math.inf)]
Decay = Annotated[float, Within(0, below=1), COMPLEMENT]
Momentum = Annotated[float, Within(0, 1), COMPLEMENT, OFF_AT_ZERO]
EpsRoot = Annotated[float, Within(0, below=math.inf), OFF_AT_ZERO]
Count = Annotated[int, Within(0)]  # an int is static: a new value compiles a new program

Variant = Literal["keras", "optax"]


def markers(hint: Any, kind: type) -> list[Any]:
    """Return the markers of `kind` in a type hint, also inside `| None`."""
    found = [m for m in getattr(hint, "__metadata__", ()) if isinstance(m, kind)]
    return found + [m for argument in typing.get_args(hint) for m in markers(argument, kind)]


CAST = ". `optax.inject_hyperparams` casts numbers to the parameters' dtype: pass it `hyperparam_dtype=jnp.float32`"


class Field(NamedTuple):
    """The declaration of one hyperparameter, from its annotation."""

    types: tuple[Any, ...]  # the plain types that it may have, e.g. (float, NoneType)
    choices: tuple[Any, ...]  # of a Literal
    range: Within | None
    traced: bool  # a float: a run-time value
    complement: bool
    fixed: float | None  # the value that is part of the program, if there is one
    reader: Read | None  # of a value that is not a number

    @classmethod
    def read(cls, hint: Any) -> "Field":
        plain = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
        options = typing.get_args(plain) if typing.get_origin(plain) not in (None, Literal) else (plain,)
        types = tuple(typing.get_args(o)[0] if typing.get_origin(o) is Annotated else o for o in options)
        choices = typing.get_args(plain) if typing.get_origin(plain) is Literal else ()
        marks = markers(hint, Marker)
        fixed = next((m.value for m in markers(hint, Fixed)), None)
        reader = next(iter(markers(hint, Read)), None)
        within = next(iter(markers(hint, Within)), None)
        return cls(types, choices, within, float in types, COMPLEMENT in marks, fixed, reader)

    def check(self, name: str, value: Any) -> Any:
        """Validate `value`, and return it as a plain Python value.

        Raises:
            TypeError: if it is of another type. ValueError: if it is out of range or not among the choices.
        """
        if value is None and type(None) in self.types:
            return value
        if isinstance(value, Tracer) and not self.traced:
            raise TypeError(
                f"`{name}` must be a constant of the compiled program. Received: a traced value. Under "
                f'`optax.inject_hyperparams`, pass `static_args=("{name}",)`.'
            )
        if self.reader is not None:
            return self.reader.function(value)
        if self.choices:
            if value not in self.choices:
                raise ValueError(f"`{name}` must be one of {list(self.choices)}. Received: {name}={value!r}")
            return value
        if bool in self.types and isinstance(value, (bool, np.bool_)):
            return bool(value)
        if float in self.types or int in self.types:
            return self._number(name, value)
        if bool in self.types:
            raise TypeError(f"`{name}` must be True or False. Received: {name}={value!r} ({type(value).__name__})")
        if str in self.types and not isinstance(value, str):
            raise TypeError(f"`{name}` must be a string. Received: {name}={value!r} ({type(value).__name__})")
        return value

    def _number(self, name: str, value: Any) -> Any:
        kind = float if float in self.types else int
        numeric = isinstance(value, (int, float, np.number, np.ndarray, Array)) and not isinstance(value, bool)
        if not numeric or np.ndim(value) or np.iscomplexobj(value) or (kind is int and not float(value).is_integer()):
            hint = CAST if isinstance(value, Array) and np.iscomplexobj(value) else ""
            hint = PARAMS_FIRST if name == RATE and holds_arrays(value) else hint
            raise TypeError(
                f"`{name}` must be {'a number' if kind is float else 'an integer'}"
                f"{' or None' if type(None) in self.types else ''}. Received: {name}={value!r} ({type(value).__name__})"
                f"{hint}"
            )
        if self.complement and isinstance(value, Array) and value.dtype in (jnp.bfloat16, jnp.float16):
            raise TypeError(
                f"`{name}` must be a Python number or a float32 array: {value.dtype} cannot represent 0.999. "
                f"Received: {name}={value!r}{CAST}"
            )
        if isinstance(value, Tracer):
            return value
        number = kind(value)
        if self.range is not None and number not in self.range:
            raise ValueError(f"`{name}` must be in {self.range}. Received: {name}={value!r}")
        return number


RATE = "learning_rate"
TRACED: Any = Marker("traced")  # the placeholder of a run-time value in a skeleton


@functools.cache
def fields_of(cls: type) -> dict[str, Field]:
    """Return the declarations of a `Hyperparameters` class, in the order of its constructor."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {f.name: Field.read(hints[f.name]) for f in dataclasses.fields(cls)}


def as_scalar(field: Field, value: Any) -> Any:
    """Convert a run-time value to an argument of the compiled step: a scalar array, or a `Complemented`."""
    dtype = jnp.result_type(float)
    return complemented(value, dtype) if field.complement else jnp.asarray(value, dtype)


def is_function(field: Field, value: Any) -> bool:
    """Whether the value of a number is a function: of the step or, in the stateful face, without arguments."""
    return field.traced and callable(value) and not isinstance(value, (type, Array))


def scheduled(name: str, field: Field, value: Any) -> Any:
    """Convert what a function of the step returned to an argument of the compiled step.

    Raises:
        ValueError: if it is not one number.
    """
    number = jnp.asarray(value)
    if number.shape or jnp.iscomplexobj(number):
        raise ValueError(
            f"`{name}` must be one number. Received: an array of shape {number.shape} and dtype {number.dtype} from "
            "its function"
        )
    return as_scalar(field, number.astype(jnp.result_type(float)))
