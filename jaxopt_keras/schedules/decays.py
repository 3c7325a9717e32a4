"""The schedules that are built in."""

import math
from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass, fields
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxopt_keras.schedules.arguments import (
    Check,
    Delay,
    Each,
    Factor,
    Flag,
    Name,
    Rate,
    Span,
    amount,
    amount_or_none,
    delay,
    growth,
)
from jaxopt_keras.schedules.base import LearningRateSchedule


class BuiltIn(LearningRateSchedule):
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
class ExponentialDecay(BuiltIn):
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
class PiecewiseConstantDecay(BuiltIn):
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

    boundaries: Annotated[Sequence[float], Each(delay)]
    values: Annotated[Sequence[float], Each(amount)]
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
class PolynomialDecay(BuiltIn):
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
class InverseTimeDecay(BuiltIn):
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
class CosineDecay(BuiltIn):
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
    warmup_target: Annotated[float | None, amount_or_none] = None
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
class CosineDecayRestarts(BuiltIn):
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
    t_mul: Annotated[float, growth] = 2.0
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
_shape = Check("a string", (str,), f"one of {list(_SHAPES)}", lambda value: value in _SHAPES)


@dataclass(frozen=True, eq=False)
class WarmupStableDecay(BuiltIn):
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
class InverseSqrtDecay(BuiltIn):
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
