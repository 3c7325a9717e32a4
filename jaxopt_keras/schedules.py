"""Learning-rate schedules: functions from the step to a rate.

`step` is the number of updates already done: 0 at the first. Any function of it is a schedule, optax's too. The classes
here are values besides: equal ones share one compiled program, they print as the call that makes them, and they go to
JSON and back. Arguments, defaults and rates are Keras 3's, with three differences:

- An integer initial rate is a rate. (Keras then computes in integers: `ExponentialDecay(1, 10, 0.5)` is 1, 0, 0, ...)
- Stairs, cycles and restarts come at their step, up to step 2**24 in float32. (`step / decay_steps` or a logarithm may
  there fall just short of a whole number, or just past it; Keras, which rounds it down or up, is then a step off.)
- A rate that is negative, or would turn NaN in the course of the training, is refused at once.

Each class takes the step as an int or an integer array of any shape, and returns a float32 array of that shape (float64
under `jax_enable_x64`). Every constructor raises a `TypeError` for an argument of the wrong type and a `ValueError` for
one out of its range.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from functools import partial
from os import PathLike
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "CosineDecay",
    "CosineDecayRestarts",
    "ExponentialDecay",
    "InverseSqrtDecay",
    "InverseTimeDecay",
    "LearningRateSchedule",
    "PiecewiseConstantDecay",
    "PolynomialDecay",
    "Schedule",
    "WarmupStableDecay",
    "deserialize",
    "is_schedule",
    "plot",
    "serialize",
]

Schedule: TypeAlias = Callable[[Any], ArrayLike]
"""A function from the step to the learning rate."""


class LearningRateSchedule:
    """The base class for schedules of your own: override `__call__`, and `get_config` to make them serializable.

    `__call__` runs inside the compiled update, where `step` is a traced integer: choose with `jnp.where`, not `if`.
    Leave a schedule as it is once an optimizer has it: a program compiled with its old attributes would keep them.

    >>> class Halving(LearningRateSchedule):
    ...     def __init__(self, initial_learning_rate):
    ...         self.initial_learning_rate = initial_learning_rate
    ...
    ...     def __call__(self, step):
    ...         return self.initial_learning_rate * 0.5**step
    ...
    ...     def get_config(self):
    ...         return {"initial_learning_rate": self.initial_learning_rate}
    >>> Halving.from_config(Halving(0.1).get_config())(1)
    0.05
    """

    def __call__(self, step: Any) -> ArrayLike:
        """The learning rate at `step`."""
        raise NotImplementedError(
            f"`{type(self).__name__}` must define `__call__(self, step)`: the learning rate at that step. "
            "For example: `return self.initial_learning_rate / (step + 1)`."
        )

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, as a dict that JSON can hold."""
        raise NotImplementedError(
            f"`{type(self).__name__}` must define `get_config(self)` to be serializable: its constructor's arguments. "
            "For example: `return {'initial_learning_rate': self.initial_learning_rate}`."
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The schedule that `get_config` described; `config` is not changed."""
        return cls(**config)


# The kinds of argument. Each is a type that carries its check, which also prints, so that a signature says the rule.


@dataclass(frozen=True)
class _Check:
    """Turns an argument into the value to keep, or refuses it."""

    kind: str
    types: tuple[type, ...]
    rule: str = ""
    holds: Callable[[Any], bool] = lambda value: True
    keep: Callable[[Any], Any] = lambda value: value
    remedy: str = ""

    def __repr__(self) -> str:
        return self.rule or self.kind

    def __call__(self, name: str, value: Any) -> Any:
        received = f"Received: {name}={value!r}"
        if isinstance(value, np.generic | np.ndarray | Array) and value.ndim == 0 and not isinstance(value, Tracer):
            value = value.item()
        if not isinstance(value, self.types) or (isinstance(value, bool) and bool not in self.types):
            raise TypeError(f"`{name}` must be {self.kind}. {received} ({type(value).__name__})")
        if not self.holds(value):
            raise ValueError(f"`{name}` must be {self.rule}. {received}{self.remedy}")
        return self.keep(value)


@dataclass(frozen=True)
class _Each:
    """The same check for every entry of a list, which becomes a tuple."""

    check: _Check

    def __repr__(self) -> str:
        return f"each {self.check}"

    def __call__(self, name: str, value: Any) -> tuple[float, ...]:
        if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray | Array):
            raise TypeError(f"`{name}` must be a list or tuple of numbers. Received: {name}={value!r}")
        return tuple(self.check(f"{name}[{i}]", entry) for i, entry in enumerate(value))


def _count(value: float) -> float:
    # JAX takes an int for an int32; a larger one becomes here the float that the arithmetic would make of it.
    return value if value < 2**31 else float(value)


_number = partial(_Check, "a number", (int, float))
_amount = _number("at least 0 and finite", lambda x: 0 <= x < math.inf, keep=float)
_growth = _number("1, or at least 1.0001 and finite", lambda x: x == 1 or 1.0001 <= x < math.inf, keep=float)
_delay = _number("at least 0 and finite", lambda x: 0 <= x < math.inf, keep=_count)
_span = _number(
    "above 0 and finite",
    lambda x: 0 < x < math.inf,
    keep=_count,
    remedy=". For a rate that stays, give the number itself, not a schedule.",
)
_amount_or_none = _Check(
    "a number or None",
    (int, float, NoneType),
    "None, or at least 0 and finite",
    lambda x: x is None or 0 <= x < math.inf,
    keep=lambda x: x if x is None else float(x),
)

Rate = Annotated[float, _amount]
Factor = Annotated[float, _amount]
Span = Annotated[float, _span]  # a number of steps
Delay = Annotated[float, _delay]  # a number of steps that may be 0
Flag = Annotated[bool, _Check("True or False", (bool,))]
Name = Annotated[str | None, _Check("a string", (str, NoneType))]


class _BuiltIn(LearningRateSchedule):
    """What the built-in schedules share. Each is a frozen dataclass that adds its arguments and `_rate`."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]  # for the type checker: every subclass is a dataclass
    name: str | None

    def __post_init__(self) -> None:
        for field in fields(self):
            for check in getattr(field.type, "__metadata__", ()):
                object.__setattr__(self, field.name, check(field.name, getattr(self, field.name)))

    # Not the dataclass's equality (eq=False below), which is blind to what a subclass keeps besides these arguments.
    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), frozenset(vars(self).items())))

    def __call__(self, step: ArrayLike) -> Array:
        with jax.named_scope(self.name or type(self).__name__):
            return self._rate(jnp.asarray(step, jnp.result_type(float)))

    def _rate(self, step: Array) -> Array:
        raise NotImplementedError(f"`{type(self).__name__}` must define `_rate(self, step)`.")

    def get_config(self) -> dict[str, Any]:
        config = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in config.items()}


@dataclass(frozen=True, eq=False)
class ExponentialDecay(_BuiltIn):
    """Multiplies the rate by `decay_rate` every `decay_steps` steps.

        p    = step / decay_steps        (rounded down if `staircase`)
        rate = initial_learning_rate * decay_rate ** p

    Args:
        initial_learning_rate: the rate at step 0.
        decay_steps: steps, more than 0.
        decay_rate: the factor; above 1 the rate grows.
        staircase: change the rate only once every `decay_steps` steps.
        name: the name of the computation in profiles.

    Raises:
        ValueError: if `decay_steps` is not above 0, or a number is negative. TypeError: if one is no number.

    >>> ExponentialDecay(0.5, decay_steps=1000, decay_rate=0.5)(2000)
    Array(0.125, dtype=float32)
    """

    initial_learning_rate: Rate
    decay_steps: Span
    decay_rate: Factor
    staircase: Flag = False
    name: Name = "ExponentialDecay"

    def _rate(self, step: Array) -> Array:
        p = step // self.decay_steps if self.staircase else step / self.decay_steps
        return self.initial_learning_rate * self.decay_rate**p


@dataclass(frozen=True, eq=False)
class PiecewiseConstantDecay(_BuiltIn):
    """Steps from one constant rate to the next.

        rate = values[i],  i = how many of the `boundaries` are below `step`

    So `values[i]` lasts up to and with step `boundaries[i]`. (optax and PyTorch change one step earlier.)

    Args:
        boundaries: increasing steps.
        values: the rates, one more than there are boundaries.
        name: as in `ExponentialDecay`.

    Raises:
        ValueError: if the lengths do not fit, the boundaries do not increase, or a number is negative. TypeError: if
            one is no number, or there is no list.

    >>> schedule = PiecewiseConstantDecay(boundaries=[100, 200], values=[1.0, 0.5, 0.25])
    >>> [float(schedule(step)) for step in (100, 101, 201)]
    [1.0, 0.5, 0.25]
    """

    boundaries: Annotated[Sequence[float], _Each(_delay)]
    values: Annotated[Sequence[float], _Each(_amount)]
    name: Name = "PiecewiseConstant"

    def __post_init__(self) -> None:
        super().__post_init__()
        boundaries, values = list(self.boundaries), list(self.values)
        received = f"Received: boundaries={boundaries}, values={values}"
        if len(values) != len(boundaries) + 1:
            raise ValueError(
                "`values` must be one longer than `boundaries`: a rate up to each, and one after the last. "
                f"{received} (lengths {len(boundaries)} and {len(values)})"
            )
        if any(low >= high for low, high in zip(boundaries, boundaries[1:], strict=False)):
            raise ValueError(f"`boundaries` must increase. {received}")

    def _rate(self, step: Array) -> Array:
        i = jnp.searchsorted(jnp.asarray(self.boundaries, step.dtype), step, method="compare_all")
        return jnp.asarray(self.values, step.dtype)[i]


@dataclass(frozen=True, eq=False)
class PolynomialDecay(_BuiltIn):
    """Goes from one rate to another along a power of the time that is left.

        n    = decay_steps            (if `cycle`: its first multiple that is not below `step`)
        left = (n - min(step, n)) / n
        rate = end_learning_rate + (initial_learning_rate - end_learning_rate) * left ** power

    Args:
        initial_learning_rate: the rate at step 0.
        decay_steps: steps, more than 0.
        end_learning_rate: the rate from step `decay_steps` on.
        power: 1 is a straight line.
        cycle: past `decay_steps`, rise again and take longer: as if it had been 2, 3, ... times as many from the start.
        name: as in `ExponentialDecay`; so are the errors.

    >>> schedule = PolynomialDecay(1.0, decay_steps=100, end_learning_rate=0.5)
    >>> [float(schedule(step)) for step in (0, 50, 100, 1000)]
    [1.0, 0.75, 0.5, 0.5]
    """

    initial_learning_rate: Rate
    decay_steps: Span
    end_learning_rate: Rate = 0.0001
    power: Factor = 1.0
    cycle: Flag = False
    name: Name = "PolynomialDecay"

    def _rate(self, step: Array) -> Array:
        n = self.decay_steps
        if self.cycle:
            n = n * jnp.maximum(-(-step // n), 1)
        left = (n - jnp.minimum(step, n)) / n
        return self.end_learning_rate + (self.initial_learning_rate - self.end_learning_rate) * left**self.power


@dataclass(frozen=True, eq=False)
class InverseTimeDecay(_BuiltIn):
    """Divides the rate by a number that grows with time.

        p    = step / decay_steps        (rounded down if `staircase`)
        rate = initial_learning_rate / (1 + decay_rate * p)

    Args:
        initial_learning_rate: the rate at step 0.
        decay_steps: steps, more than 0.
        decay_rate: what every `decay_steps` steps add to the divisor.
        staircase: change the rate only once every `decay_steps` steps.
        name: as in `ExponentialDecay`; so are the errors.

    >>> InverseTimeDecay(0.5, decay_steps=1000, decay_rate=3)(1000)
    Array(0.125, dtype=float32)
    """

    initial_learning_rate: Rate
    decay_steps: Span
    decay_rate: Factor
    staircase: Flag = False
    name: Name = "InverseTimeDecay"

    def _rate(self, step: Array) -> Array:
        p = step // self.decay_steps if self.staircase else step / self.decay_steps
        return self.initial_learning_rate / (1 + self.decay_rate * p)


def _warm_up(step: Array, steps: float, initial: float, peak: float, after: Array) -> Array:
    """From `initial` to `peak` along a straight line of `steps` steps, then `after`."""
    if steps == 0:
        return after
    return jnp.where(step < steps, initial + (peak - initial) * (step / steps), after)


def _cosine(p: Array) -> Array:
    """Half a cosine wave: 1 at p = 0, 0 at p = 1."""
    return (1 + jnp.cos(math.pi * p)) / 2


@dataclass(frozen=True, eq=False)
class CosineDecay(_BuiltIn):
    """Half a cosine wave down, after an optional straight line up.

        peak = warmup_target                   (initial_learning_rate, and no warm-up, if that is None)
        rate = initial_learning_rate + (peak - initial_learning_rate) * step / warmup_steps    while step < warmup_steps
        p    = min(step - warmup_steps, decay_steps) / decay_steps
        rate = peak * ((1 - alpha) * (1 + cos(pi * p)) / 2 + alpha)                            from then on

    From Loshchilov & Hutter 2016 (arXiv:1608.03983); the warm-up from Goyal et al. 2017 (arXiv:1706.02677).

    Args:
        initial_learning_rate: the rate at step 0.
        decay_steps: steps of the decay, more than 0, the warm-up not included. (optax's `decay_steps` includes it.)
        alpha: the last rate as a fraction of `peak`.
        name: as in `ExponentialDecay`; so are the errors.
        warmup_target: the rate at the end of the warm-up.
        warmup_steps: steps of the warm-up; without a `warmup_target` there is none.

    >>> schedule = CosineDecay(0.0, decay_steps=200, alpha=0.5, warmup_target=1.0, warmup_steps=100)
    >>> [float(schedule(step)) for step in (0, 50, 100, 200, 300)]
    [0.0, 0.5, 1.0, 0.75, 0.5]
    """

    initial_learning_rate: Rate
    decay_steps: Span
    alpha: Factor = 0.0
    name: Name = "CosineDecay"
    warmup_target: Annotated[float | None, _amount_or_none] = None
    warmup_steps: Delay = 0

    def _rate(self, step: Array) -> Array:
        if self.warmup_target is None:
            warmup_steps, peak = 0, self.initial_learning_rate
        else:
            warmup_steps, peak = self.warmup_steps, self.warmup_target
        p = jnp.clip(step - warmup_steps, 0, self.decay_steps) / self.decay_steps
        decayed = peak * ((1 - self.alpha) * _cosine(p) + self.alpha)
        return _warm_up(step, warmup_steps, self.initial_learning_rate, peak, decayed)


@dataclass(frozen=True, eq=False)
class CosineDecayRestarts(_BuiltIn):
    """Half a cosine wave down, again and again: each `t_mul` times longer than the last, and `m_mul` times as high.

        i    = the number of restarts so far
        p    = the steps since the last one / (first_decay_steps * t_mul ** i)
        rate = initial_learning_rate * ((1 - alpha) * m_mul ** i * (1 + cos(pi * p)) / 2 + alpha)

    SGDR, Loshchilov & Hutter 2016 (arXiv:1608.03983).

    Args:
        initial_learning_rate: the rate at step 0.
        first_decay_steps: steps of the first wave, more than 0.
        t_mul: 1, or at least 1.0001. (Shrinking waves would all be over at some step; Keras's rate is NaN from there.)
        m_mul: the factor of the height.
        alpha: the lowest rate as a fraction of `initial_learning_rate`.
        name: as in `ExponentialDecay`; so are the errors.

    >>> schedule = CosineDecayRestarts(1.0, first_decay_steps=100, m_mul=0.5)
    >>> [float(schedule(step)) for step in (0, 100, 300, 700)]
    [1.0, 0.5, 0.25, 0.125]
    """

    initial_learning_rate: Rate
    first_decay_steps: Span
    t_mul: Annotated[float, _growth] = 2.0
    m_mul: Factor = 1.0
    alpha: Factor = 0.0
    name: Name = "SGDRDecay"

    def _rate(self, step: Array) -> Array:
        i, p = self._wave(step)
        return self.initial_learning_rate * ((1 - self.alpha) * self.m_mul**i * _cosine(p) + self.alpha)

    def _wave(self, step: Array) -> tuple[Array, Array]:
        n, t = float(self.first_decay_steps), self.t_mul
        if t == 1:
            i = step // n
            return i, (step - i * n) / n
        # The waves that begin before step 2**31, in the host's doubles: logarithms in float32 can miss the right one.
        waves = t ** np.arange(1 + int(math.log1p(2**31 * (t - 1) / n) / math.log(t)))
        starts = n * (waves - 1) / (t - 1)
        reached = jnp.asarray(starts.round(6), step.dtype)  # a start at a whole step is at that step, not 1e-12 past it
        i = jnp.searchsorted(reached, step, side="right", method="compare_all") - 1
        p = (step - jnp.asarray(starts, step.dtype)[i]) / jnp.asarray(n * waves, step.dtype)[i]
        return i.astype(step.dtype), p


_SHAPES: dict[str, Callable[[Array], Array]] = {
    "linear": lambda p: 1 - p,
    "cosine": _cosine,
    "sqrt": lambda p: 1 - jnp.sqrt(p),
}
_shape = _Check("a string", (str,), f"one of {list(_SHAPES)}", lambda value: value in _SHAPES)


@dataclass(frozen=True, eq=False)
class WarmupStableDecay(_BuiltIn):
    """A straight line up, a plateau, and a short way down: the length of the training need not be known at its start.

        rate = initial_learning_rate + (peak_learning_rate - initial_learning_rate) * step / warmup_steps
                                                                                 while step < warmup_steps
        p    = (step - warmup_steps - stable_steps) / decay_steps                (clipped to 0 ... 1)
        rate = end_learning_rate + (peak_learning_rate - end_learning_rate) * f(p)     from then on
        f(p) = 1 - p ("linear"),  (1 + cos(pi * p)) / 2 ("cosine"),  1 - sqrt(p) ("sqrt")

    WSD, Hu et al. 2024 (arXiv:2404.06395); the "sqrt" way down from Hägele et al. 2024 (arXiv:2405.18392).

    Args:
        peak_learning_rate: the rate of the plateau.
        warmup_steps: steps of the way up, 0 or more.
        stable_steps: steps of the plateau, 0 or more.
        decay_steps: steps of the way down, more than 0.
        initial_learning_rate: the rate at step 0.
        end_learning_rate: the last rate, which stays.
        decay: the shape of the way down.
        name: as in `ExponentialDecay`; so are the errors.

    >>> schedule = WarmupStableDecay(1.0, warmup_steps=10, stable_steps=100, decay_steps=20)
    >>> [float(schedule(step)) for step in (0, 5, 10, 110, 120, 130)]
    [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]
    """

    peak_learning_rate: Rate
    warmup_steps: Delay
    stable_steps: Delay
    decay_steps: Span
    initial_learning_rate: Rate = 0.0
    end_learning_rate: Rate = 0.0
    decay: Annotated[Literal["linear", "cosine", "sqrt"], _shape] = "linear"
    name: Name = "WarmupStableDecay"

    def _rate(self, step: Array) -> Array:
        peak, end = self.peak_learning_rate, self.end_learning_rate
        p = jnp.clip(step - self.warmup_steps - self.stable_steps, 0, self.decay_steps) / self.decay_steps
        after = end + (peak - end) * _SHAPES[self.decay](p)
        return _warm_up(step, self.warmup_steps, self.initial_learning_rate, peak, after)


@dataclass(frozen=True, eq=False)
class InverseSqrtDecay(_BuiltIn):
    """A straight line up, then down with the square root of the step, without an end.

        rate = initial_learning_rate + (peak_learning_rate - initial_learning_rate) * step / warmup_steps
                                                                                 while step < warmup_steps
        rate = peak_learning_rate * sqrt(warmup_steps / step)                    from then on

    The Transformer's, Vaswani et al. 2017 (arXiv:1706.03762, equation 3): for a model of width d its peak is
    `(d * warmup_steps) ** -0.5`. With `initial_learning_rate = peak_learning_rate = warmup_steps ** -0.5` it is T5's
    `1 / sqrt(max(step, warmup_steps))`, Raffel et al. 2019 (arXiv:1910.10683).

    Args:
        peak_learning_rate: the rate at step `warmup_steps`, the highest.
        warmup_steps: steps of the way up, more than 0; 4000 in the Transformer, 10000 in T5.
        initial_learning_rate: the rate at step 0.
        name: as in `ExponentialDecay`; so are the errors.

    >>> schedule = InverseSqrtDecay(1.0, warmup_steps=100)
    >>> [float(schedule(step)) for step in (0, 50, 100, 400)]
    [0.0, 0.5, 1.0, 0.5]
    """

    peak_learning_rate: Rate
    warmup_steps: Span
    initial_learning_rate: Rate = 0.0
    name: Name = "InverseSqrtDecay"

    def _rate(self, step: Array) -> Array:
        peak, w = self.peak_learning_rate, self.warmup_steps
        return _warm_up(step, w, self.initial_learning_rate, peak, peak * jnp.sqrt(w / jnp.maximum(step, w)))


def serialize(schedule: LearningRateSchedule) -> dict[str, Any]:
    """A schedule as a dict that JSON can hold, in Keras's layout; `deserialize` reads it.

    Raises:
        TypeError: if `schedule` is a plain function, which no dict can describe.

    >>> serialize(InverseSqrtDecay(1.0, 100))["class_name"]
    'InverseSqrtDecay'
    """
    if not isinstance(schedule, LearningRateSchedule):
        raise TypeError(
            "`schedule` must be a `LearningRateSchedule` to be serialized: make your function the `__call__` of a "
            f"subclass that defines `get_config`. Received: schedule={schedule!r}"
        )
    kind = type(schedule)
    config = schedule.get_config()
    return {"module": kind.__module__, "class_name": kind.__name__, "config": config, "registered_name": None}


_CLASSES: dict[str, type[LearningRateSchedule]] = {
    kind.__name__: kind
    for kind in (
        ExponentialDecay,
        PiecewiseConstantDecay,
        PolynomialDecay,
        InverseTimeDecay,
        CosineDecay,
        CosineDecayRestarts,
        WarmupStableDecay,
        InverseSqrtDecay,
    )
}


def deserialize(
    config: Mapping[str, Any], custom_objects: Mapping[str, type[LearningRateSchedule]] | None = None
) -> LearningRateSchedule:
    """The schedule that `serialize` described, Keras's own `serialize` too; `config` is not changed.

    Args:
        config: `{"class_name": ..., "config": {...}}`, with or without the rest.
        custom_objects: your own classes by name; they come first.

    Raises:
        TypeError: if `config` is no such dict. ValueError: if its class is neither built in nor among yours.

    >>> deserialize({"class_name": "InverseSqrtDecay", "config": {"peak_learning_rate": 1, "warmup_steps": 100}})
    InverseSqrtDecay(peak_learning_rate=1.0, warmup_steps=100, initial_learning_rate=0.0, name='InverseSqrtDecay')
    """
    if not (isinstance(config, Mapping) and isinstance(config.get("class_name"), str)):
        raise TypeError(f"`config` must be a dict with `class_name` and `config`. Received: config={config!r}")
    name, module = config["class_name"], config.get("module") or __name__
    custom = custom_objects or {}
    kind = custom.get(config.get("registered_name") or name) or custom.get(name)
    # Another module's class may have the name of one of ours; Keras's (and tf_keras's) are the same schedules.
    if kind is None and module.endswith((__name__, "keras.optimizers.schedules")):
        kind = _CLASSES.get(name)
    if kind is None:
        raise ValueError(
            f"`config` must describe one of {list(_CLASSES)}, or a class that you name: "
            f"`custom_objects={{{name!r}: {name}}}`. Received: class_name={name!r}, module={module!r}"
        )
    return kind.from_config(dict(config.get("config") or {}))


def is_schedule(x: Any) -> bool:
    """Whether `x` is a schedule: a `LearningRateSchedule`, or a function that can be given the step.

    A function that takes nothing is none; one whose signature cannot be read is.

    >>> is_schedule(lambda step: 0.1 / (step + 1)), is_schedule(lambda: 0.1), is_schedule(0.1)
    (True, False, False)
    """
    if isinstance(x, LearningRateSchedule):
        return True
    if not callable(x):
        return False
    try:
        parameters = inspect.signature(x).parameters.values()
    except (TypeError, ValueError):
        return True
    return any(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL) for p in parameters)


def plot(
    schedule: Schedule | Mapping[str, Schedule] | Sequence[Schedule],
    steps: int | Sequence[int] | np.ndarray,
    ax: "Axes | None" = None,
    path: str | PathLike[str] | None = None,
) -> "Axes":
    """Draws the learning rate over the steps, with matplotlib but without pyplot: no window, no global state.

    Args:
        schedule: one schedule, or several: a list, or a dict whose keys become the legend.
        steps: how many steps to draw, from 0 on (a thousand of them if they are more), or the steps themselves.
        ax: the axes to draw on; new ones by default.
        path: where to save the picture; a PNG unless the name ends otherwise.

    Returns:
        The axes; their picture is `ax.figure`.

    Raises:
        ImportError: without matplotlib. TypeError: if something is no schedule. ValueError: if there are no steps.

    >>> plot({"fast": ExponentialDecay(0.1, 100, 0.5), "slow": lambda step: 0.1}, steps=300).get_xlabel()
    'step'
    """
    if isinstance(schedule, Mapping):
        lines = list(schedule.items())
    else:
        lines = [(_title(each), each) for each in (schedule if isinstance(schedule, Sequence) else [schedule])]
    for _, each in lines:
        if not is_schedule(each):
            raise TypeError(f"`schedule` must be a function of the step, or a list or dict of them. Received: {each!r}")
    at = np.asarray(steps)
    if at.ndim == 0:
        at = np.linspace(0, at - 1, max(0, min(int(at), 1000))).round()
    if at.size == 0:
        raise ValueError(f"`steps` must be at least 1. Received: steps={steps!r}")
    if ax is None:
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("`plot` needs matplotlib: `pip install 'jaxopt_keras[plots]'`.") from error
        ax = Figure(layout="constrained").subplots()
    for label, each in lines:
        ax.plot(at, np.array([each(int(step)) for step in at], float), label=label)
    ax.set(xlabel="step", ylabel="learning rate")
    ax.legend()
    if path is not None:
        ax.figure.canvas.print_figure(path)
    return ax


def _title(schedule: Any) -> str:
    name = getattr(schedule, "name", None) or getattr(schedule, "__name__", None)
    return name if isinstance(name, str) else type(schedule).__name__
