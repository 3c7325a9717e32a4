"""The built-in schedules."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

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
from jaxopt_keras.schedules.builtin import BuiltIn


@dataclass(frozen=True, eq=False)
class ExponentialDecay(BuiltIn):
    """Multiply the rate by `decay_rate` every `decay_steps` steps.

        p    = step / decay_steps        (rounded down if `staircase`)
        rate = initial_learning_rate * decay_rate ** p

    Args:
        initial_learning_rate: the rate at step 0.
        decay_steps: steps, more than 0.
        decay_rate: the factor; above 1 the rate grows.
        staircase: change the rate only once every `decay_steps` steps.
        name: the name of the computation in profiles.

    Raises:
        ValueError: if `decay_steps` is not above 0, or a number is negative. TypeError: if one is not a number.

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
    """Change from one constant rate to the next at each boundary.

        rate = values[i],  i = the number of `boundaries` below `step`

    The last step with `values[i]` is `boundaries[i]`. (optax and PyTorch change one step earlier.)

    Args:
        boundaries: increasing steps.
        values: the rates, one more than there are boundaries.
        name: as in `ExponentialDecay`.

    Raises:
        ValueError: if the lengths do not fit, the boundaries do not increase, or a number is negative. TypeError: for
            anything but lists of numbers.

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
    """Decay from one rate to another, as a power of the remaining time.

        n    = decay_steps            (if `cycle`: its first multiple that is not below `step`)
        left = (n - min(step, n)) / n
        rate = end_learning_rate + (initial_learning_rate - end_learning_rate) * left ** power

    Args:
        initial_learning_rate: the rate at step 0.
        decay_steps: steps, more than 0.
        end_learning_rate: the rate from step `decay_steps` on.
        power: 1 is a straight line.
        cycle: after `decay_steps`, restart with 2, 3, ... times as many steps in all, instead of keeping the end rate.
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
    """Divide the rate by a number that grows with time.

        p    = step / decay_steps        (rounded down if `staircase`)
        rate = initial_learning_rate / (1 + decay_rate * p)

    Args:
        initial_learning_rate: the rate at step 0.
        decay_steps: steps, more than 0.
        decay_rate: the amount that every `decay_steps` steps add to the divisor.
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
    """Return a linear warm-up from `initial` to `peak` over `steps` steps, then `after`."""
    if steps == 0:
        return after
    return jnp.where(step < steps, initial + (peak - initial) * (step / steps), after)


def _cosine(p: Array) -> Array:
    """Compute half a cosine wave: 1 at p = 0, 0 at p = 1."""
    return (1 + jnp.cos(math.pi * p)) / 2


@dataclass(frozen=True, eq=False)
class CosineDecay(BuiltIn):
    """Decay along half a cosine wave, after an optional linear warm-up.

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
    """Decay along half a cosine wave, and restart: each wave is `t_mul` times as long and `m_mul` times as high.

        i    = the number of restarts so far
        p    = the steps since the last one / (first_decay_steps * t_mul ** i)
        rate = initial_learning_rate * ((1 - alpha) * m_mul ** i * (1 + cos(pi * p)) / 2 + alpha)

    SGDR, Loshchilov & Hutter 2016 (arXiv:1608.03983).

    Args:
        initial_learning_rate: the rate at step 0.
        first_decay_steps: steps of the first wave, more than 0.
        t_mul: 1, or at least 1.0001. (Shrinking waves would end at some step; Keras's rate is NaN from there.)
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
        # The waves that start before step 2**31, in the host's float64: logarithms in float32 can select a wrong one.
        waves = t ** np.arange(1 + int(math.log1p(2**31 * (t - 1) / n) / math.log(t)))
        starts = n * (waves - 1) / (t - 1)
        reached = jnp.asarray(starts.round(6), step.dtype)  # an integer start is exact, not off by 1e-12
        i = jnp.searchsorted(reached, step, side="right", method="compare_all") - 1
        p = (step - jnp.asarray(starts, step.dtype)[i]) / jnp.asarray(n * waves, step.dtype)[i]
        return i.astype(step.dtype), p


_SHAPES: dict[str, Callable[[Array], Array]] = {
    "linear": lambda p: 1 - p, "cosine": _cosine, "sqrt": lambda p: 1 - jnp.sqrt(p),
}  # fmt: skip
_shape = Check("a string", (str,), f"one of {list(_SHAPES)}", lambda value: value in _SHAPES)


@dataclass(frozen=True, eq=False)
class WarmupStableDecay(BuiltIn):
    """Warm up linearly, keep a constant rate, then decay: the length of the training need not be known at its start.

        rate = initial_learning_rate + (peak_learning_rate - initial_learning_rate) * step / warmup_steps
                                                                                 while step < warmup_steps
        p    = (step - warmup_steps - stable_steps) / decay_steps                (clipped to 0 ... 1)
        rate = end_learning_rate + (peak_learning_rate - end_learning_rate) * f(p)     from then on
        f(p) = 1 - p ("linear"),  (1 + cos(pi * p)) / 2 ("cosine"),  1 - sqrt(p) ("sqrt")

    WSD, Hu et al. 2024 (arXiv:2404.06395); the "sqrt" decay from Hägele et al. 2024 (arXiv:2405.18392).

    Args:
        peak_learning_rate: the constant rate after the warm-up.
        warmup_steps: steps of the warm-up, 0 or more.
        stable_steps: steps of the constant rate, 0 or more.
        decay_steps: steps of the decay, more than 0.
        initial_learning_rate: the rate at step 0.
        end_learning_rate: the rate after the decay.
        decay: the shape of the decay.
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
    """Warm up linearly, then divide by the square root of the step, without an end.

        rate = initial_learning_rate + (peak_learning_rate - initial_learning_rate) * step / warmup_steps
                                                                                 while step < warmup_steps
        rate = peak_learning_rate * sqrt(warmup_steps / step)                    from then on

    The Transformer's, Vaswani et al. 2017 (arXiv:1706.03762, equation 3): for a model of width d its peak is
    `(d * warmup_steps) ** -0.5`. With `initial_learning_rate = peak_learning_rate = warmup_steps ** -0.5` it is T5's
    `1 / sqrt(max(step, warmup_steps))`, Raffel et al. 2019 (arXiv:1910.10683).

    Args:
        peak_learning_rate: the rate at step `warmup_steps`, the highest.
        warmup_steps: steps of the warm-up, more than 0; 4000 in the Transformer, 10000 in T5.
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
