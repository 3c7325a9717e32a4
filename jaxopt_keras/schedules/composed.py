"""Schedules of several parts: one cycle up and down, and any schedules one after the other."""

from dataclasses import dataclass
from typing import Annotated, Any

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.schedules.arguments import Each, Name, Rate, Span, delay, number
from jaxopt_keras.schedules.base import Schedule, is_schedule
from jaxopt_keras.schedules.builtin import BuiltIn, half_cosine

_fraction = number("above 0 and below 1", lambda x: 0 < x < 1, convert=float)
_divisor = number("at least 1 and finite", lambda x: 1 <= x < float("inf"), convert=float)


@dataclass(frozen=True, eq=False, repr=False)
class OneCycle(BuiltIn):
    """One cycle: half a cosine wave up to the peak, then another one down, to far below the start.

        start = peak_learning_rate / div_factor,  end = start / final_div_factor,  w = warmup_fraction * total_steps
        rate  = start + (peak_learning_rate - start) * (1 - cos(pi * step / w)) / 2                  while step < w
        p     = min((step - w) / (total_steps - w), 1)
        rate  = end + (peak_learning_rate - end) * (1 + cos(pi * p)) / 2                             from then on

    Smith & Topin 2017 (arXiv:1708.07120), with the defaults of torch and optax.

    Args:
        peak_learning_rate: the highest rate.
        total_steps: number of steps of the cycle, above 0.
        warmup_fraction: the part of the steps before the peak, above 0 and below 1.
        div_factor: the peak divided by the rate at step 0, at least 1.
        final_div_factor: the rate at step 0 divided by the rate at the end, at least 1.
        name: as in `ExponentialDecay`, which also lists the errors.

    >>> schedule = OneCycle(1.0, total_steps=100, warmup_fraction=0.5, div_factor=2.0)
    >>> [round(float(schedule(step)), 4) for step in (0, 25, 50, 75, 100)]
    [0.5, 0.75, 1.0, 0.5, 0.0001]
    """

    peak_learning_rate: Rate
    total_steps: Span
    warmup_fraction: Annotated[float, _fraction] = 0.3
    div_factor: Annotated[float, _divisor] = 25.0
    final_div_factor: Annotated[float, _divisor] = 1e4
    name: Name = "OneCycle"

    def _rate(self, step: Array) -> Array:
        peak, top = self.peak_learning_rate, self.warmup_fraction * self.total_steps
        start = peak / self.div_factor
        end = start / self.final_div_factor
        up = peak - (peak - start) * half_cosine(jnp.minimum(step / top, 1))
        down = end + (peak - end) * half_cosine(jnp.clip((step - top) / (self.total_steps - top), 0, 1))
        return jnp.where(step < top, up, down)


def _read_schedules(name: str, value: Any) -> tuple[Schedule, ...]:
    from jaxopt_keras.schedules.configs import deserialize  # which needs this module's classes

    if isinstance(value, (list, tuple)):
        value = [deserialize(each) if isinstance(each, dict) else each for each in value]
    if not isinstance(value, (list, tuple)) or not value or not all(is_schedule(each) for each in value):
        raise TypeError(f"`{name}` must be a list of schedules, functions of the step. Received: {name}={value!r}")
    return tuple(value)


@dataclass(frozen=True, eq=False, repr=False)
class Join(BuiltIn):
    """Schedules one after the other; each counts its steps from its own start.

        rate = schedules[i](step - boundaries[i - 1])     while boundaries[i - 1] <= step < boundaries[i]

    Args:
        schedules: the schedules, in the order in which they run: at least one. Functions of the step too; but only
            classes can be saved in a config, of which their own configs are a part.
        boundaries: the step at which each schedule but the first starts, ascending.
        name: as in `ExponentialDecay`, which also lists the errors.

    Raises:
        TypeError: if `schedules` is not a list of schedules. ValueError: if the number of `boundaries` is not one less,
            or if they do not ascend.

    >>> from jaxopt_keras.schedules import PolynomialDecay
    >>> schedule = Join([PolynomialDecay(0.0, 10, 1.0), PolynomialDecay(1.0, 20, 0.0)], boundaries=[10])
    >>> [float(schedule(step)) for step in (0, 5, 10, 20, 30)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """

    schedules: Annotated[tuple[Schedule, ...], _read_schedules]
    boundaries: Annotated[tuple[float, ...], Each(delay)]
    name: Name = "Join"

    def __post_init__(self) -> None:
        super().__post_init__()
        starts = self.boundaries
        if len(starts) != len(self.schedules) - 1 or any(a >= b for a, b in zip(starts, starts[1:], strict=False)):
            raise ValueError(
                f"`boundaries` must be {len(self.schedules) - 1} ascending steps, one less than there are schedules. "
                f"Received: boundaries={list(starts)}"
            )

    def _rate(self, step: Array) -> Array:
        rate = jnp.asarray(self.schedules[0](step), step.dtype)
        for start, schedule in zip(self.boundaries, self.schedules[1:], strict=True):
            # Before its start a schedule gets its own step 0, for which every schedule has a rate.
            rate = jnp.where(step < start, rate, schedule(jnp.maximum(step - start, 0)))
        return rate

    def get_config(self) -> dict[str, Any]:
        from jaxopt_keras.schedules.configs import serialize  # likewise

        parts: Any = self.schedules
        return super().get_config() | {"schedules": [serialize(each) for each in parts]}
