"""The language of rules: hyperparameters, slots, and `Rule`, an optimizer on one array.

A rule does not depend on how it runs over a tree of arrays (`docs/design.md`).
"""

import dataclasses
import functools
import inspect
import math
import typing
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, dataclass_transform

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from jaxopt_keras.language.clock import Clock
from jaxopt_keras.language.numerics import complemented
from jaxopt_keras.language.other_names import PARAMS_FIRST, holds_arrays
from jaxopt_keras.language.printing import arguments_of, call


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
Count = Annotated[int, Within(0)]  # an int is static: a new value compiles a new program

Variant = Literal["keras", "optax"]


class Slot(NamedTuple):
    """The declaration of a slot, for storage and sharding: its sign, and the axes of the parameter that it lacks."""

    nonnegative: bool = False
    exact: bool = False
    lacks: tuple[int, ...] = ()


Signed = Annotated[Array, Slot()]
NonNegative = Annotated[Array, Slot(nonnegative=True)]
Exact = Annotated[Array, Slot(exact=True)]  # an iterate or a sum: never quantize


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
            hint = hint if name == RATE or not callable(value) else f". Only `{RATE}` may be a schedule"
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


RATE = "learning_rate"  # the one number that may be a function of the step
TRACED: Any = Marker("traced")  # the placeholder of a run-time value in a skeleton


@functools.cache
def fields_of(cls: type) -> dict[str, Field]:
    """Return the declarations of a `Hyperparameters` class, in the order of its constructor."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {f.name: Field.read(hints[f.name]) for f in dataclasses.fields(cls)}


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
class Hyperparameters:
    """A frozen dataclass whose floats are run-time values. Subclasses need no decorator.

    A float that is given as a JAX array stays an array, which may be traced: see `Kernel`.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True, repr=False)(cls)

    def __post_init__(self) -> None:
        for name, field in fields_of(type(self)).items():
            value = getattr(self, name)
            if name == RATE and callable(value) and not isinstance(value, type):  # a schedule
                continue
            checked = field.check(name, value)
            object.__setattr__(self, name, value if field.traced and isinstance(value, Array) else checked)

    def __repr__(self) -> str:
        return call(type(self).__name__, *arguments_of(self, always=RATE))

    def _is_traced(self, name: str, field: Field) -> bool:
        value = getattr(self, name)
        fixed = isinstance(value, float) and value == field.fixed
        return field.traced and value is not None and not fixed and not callable(value)

    def traced(self) -> dict[str, Any]:
        """Return the values that are arguments of the compiled step, by name."""
        return {n: getattr(self, n) for n, f in fields_of(type(self)).items() if self._is_traced(n, f)}

    def skeleton(self) -> Self:
        """Return a copy without its numbers: two that can share one compiled program are equal."""
        return self.bind(dict.fromkeys(self.traced(), TRACED))

    def bind(self, values: dict[str, Any]) -> Self:
        """Return a copy with other `values`, unchecked; names that it does not have are ignored."""
        bound = object.__new__(type(self))
        for name in fields_of(type(self)):
            object.__setattr__(bound, name, values.get(name, getattr(self, name)))
        return bound

    def arrays(self) -> dict[str, Any]:
        """Return the traced values as scalars of the default float dtype, decays with their complements."""
        return {name: as_scalar(fields_of(type(self))[name], value) for name, value in self.traced().items()}


def with_python_numbers(values: Any) -> Any:
    """Return a copy with Python numbers in place of JAX arrays."""
    return values.bind({n: float(x) for n, x in vars(values).items() if isinstance(x, Array)})


def as_scalar(field: Field, value: Any) -> Any:
    """Convert a run-time value to an argument of the compiled step: a scalar array, or a `Complemented`."""
    dtype = jnp.result_type(float)
    return complemented(value, dtype) if field.complement else jnp.asarray(value, dtype)


class Stateless(NamedTuple):
    """No slots."""


class KerasOrder(NamedTuple):
    """The order of an optimizer's arguments and arrays in Keras, where it is not the usual one."""

    signature: tuple[str, ...] = ()  # the constructor's first names, where options are among them
    slot_groups: tuple[tuple[str, ...], ...] = ()  # of `variables`; all other slots form the last group
    legacy_interleaved: bool = False  # tf.keras's `get_weights` has all slots of a variable together


class Rule(Hyperparameters):
    """An optimizer on one array.

    Subclass it with hyperparameters as annotated fields, a `State` NamedTuple of slots, `init` and `update`. The
    arithmetic is in float32, or in float64 for a float64 parameter.

    Args:
        learning_rate: the rate: a number, or a schedule, which is a function of the step.
        variant: the library whose numbers the rule follows where libraries differ.

    >>> import jaxopt_keras as jk
    >>> class Sign(Rule):
    ...     learning_rate: Rate = 1e-3
    ...     def update(self, g, p, s, at):
    ...         return -at.lr * jnp.sign(g), s
    >>> kernel = jk.Kernel(Sign(learning_rate=0.5))
    >>> params = {"w": jnp.ones(3)}
    >>> params, state = kernel.step(params, kernel.init(params), {"w": jnp.ones(3)})
    >>> params["w"].tolist()
    [0.5, 0.5, 0.5]
    """

    # `element`: acts on each element alone; `leaf`: needs norms of its array (at.norm, at.rms); `matrix`: needs shapes.
    grain: ClassVar[Literal["element", "leaf", "matrix"]] = "element"
    variants: ClassVar[tuple[str, ...]] = ("keras", "optax")  # the first is the default
    complex_ok: ClassVar[bool] = True
    defaults: ClassVar[dict[str, Any]] = {}  # the optimizer's own defaults of common options
    required: ClassVar[tuple[str, ...]] = ()  # the options that may not be None
    keras: ClassVar[KerasOrder] = KerasOrder()

    learning_rate: Rate = 1e-3
    variant: Variant = dataclasses.field(default="keras", kw_only=True)

    State: ClassVar[Any] = Stateless  # a NamedTuple of the slots of one array; None for an absent slot

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if "variants" in vars(cls):  # declare the field before the dataclass is made
            cls.__annotations__ = {**inspect.get_annotations(cls), "variant": Literal[cls.variants]}
            default: Any = dataclasses.field(default=cls.variants[0], kw_only=True)
            cls.variant = vars(cls).get("variant", default)
        super().__init_subclass__(**kwargs)

    @classmethod
    @functools.cache
    def slots(cls) -> dict[str, Slot]:
        """Return the declaration of each slot of `State`."""
        hints = typing.get_type_hints(cls.State, include_extras=True)
        return {name: next(iter(markers(hint, Slot)), Slot()) for name, hint in hints.items()}

    def kinds(self, p: Array) -> dict[str, Slot]:
        """Return the declarations of the slots of `p`, for a rule whose slots lack axes that depend on the shape."""
        return self.slots()

    def init(self, p: Array) -> Any:
        """Return the slots of a new parameter: zeros, unless a rule says otherwise; slots with a default keep it."""
        started = self.slots().keys() - self.State._field_defaults.keys()
        return self.State(**{n: jnp.zeros_like(p.real if self.slots()[n].nonnegative else p) for n in started})

    def update(self, g: Array, p: Array, s: Any, at: Clock) -> tuple[Array, Any]:
        """Return the amount to add to `p`, and the new slots."""
        raise NotImplementedError(f"{type(self).__name__} needs `update(self, g, p, s, at) -> (step, state)`.")

    def scalars(self) -> Any:
        """Return the initial numbers that are kept once for all arrays: a NamedTuple, or None if there are none."""
        return None

    def advance(self, scalars: Any, at: Clock) -> Any:
        """Return the next scalars, once per step; `update` reads them from `at.scalars`."""
        return scalars

    def decoupled(self, weight_decay: Any) -> Any:
        """Return the decay applied before the rule, as `p (1 - lr decay)`; None if `update` applies it."""
        return weight_decay

    def averaged(self, p: Array, s: Any) -> Array:
        """Return the parameter to evaluate, for a rule where it is not `p`."""
        return p

    def accepts(self, path: str, p: Array) -> bool:
        """Whether this rule updates the parameter; `fallback` updates the others."""
        return True

    def placed(self, path: str, p: Array) -> "Rule":
        """Return the rule for one parameter that it accepts, where it depends on the path or the shape."""
        return self

    @property
    def fallback(self) -> "Rule":
        raise NotImplementedError(f"{type(self).__name__} does not accept all parameters: define its `fallback` rule.")
