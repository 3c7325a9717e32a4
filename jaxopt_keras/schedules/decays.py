"""Keras's monotone decays: exponential, piecewise constant, polynomial and inverse-time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.schedules.arguments import Each, Factor, Flag, Name, Rate, Span, amount, delay
from jaxopt_keras.schedules.builtin import BuiltIn


@dataclass(frozen=True, eq=False, repr=False)
class ExponentialDecay(BuiltIn):
    """Exponential decay: the rate is multiplied by `decay_rate` every `decay_steps` steps.

        p    = step / decay_steps        (rounded down if `staircase`)
        rate = initial_learning_rate * decay_rate ** p

    Args:
        initial_learning_rate: the rate at step 0.
        decay_steps: number of steps, above 0.
        decay_rate: the factor, at least 0. Above 1 the rate grows.
        staircase: whether the rate changes only once every `decay_steps` steps.
        name: name of the computation in profiles.

    Raises:
        ValueError: if `decay_steps` is not above 0, or a number is negative. TypeError: if an argument is not a number.

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


@dataclass(frozen=True, eq=False, repr=False)
class PiecewiseConstantDecay(BuiltIn):
    """Piecewise constant rate.

        rate = values[i],  i = number of `boundaries` below `step`

    So `values[i]` is the rate up to and including step `boundaries[i]`. (optax and PyTorch change one step earlier.)

    Args:
        boundaries: a list of increasing steps.
        values: a list of rates, one more than there are boundaries.
        name: as in `ExponentialDecay`.

    Raises:
        ValueError: if the lengths do not fit, the boundaries do not increase, or a number is negative. TypeError: if
            an argument is not a list of numbers.

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


@dataclass(frozen=True, eq=False, repr=False)
class PolynomialDecay(BuiltIn):
    """Polynomial decay: a power of the remaining time leads from one rate to another.

        n    = decay_steps            (if `cycle`: its first multiple that is not below `step`)
        left = (n - min(step, n)) / n
        rate = end_learning_rate + (initial_learning_rate - end_learning_rate) * left ** power

    Args:
        initial_learning_rate: the rate at step 0.
        decay_steps: number of steps, above 0.
        end_learning_rate: the rate from step `decay_steps` on.
        power: the exponent; 1 is a straight line.
        cycle: whether to raise the rate again after `decay_steps` steps, to a decay over 2, 3, ... times as many steps.
        name: as in `ExponentialDecay`, which also lists the errors.

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


@dataclass(frozen=True, eq=False, repr=False)
class InverseTimeDecay(BuiltIn):
    """Inverse-time decay: the rate is divided by a number that grows linearly with time.

        p    = step / decay_steps        (rounded down if `staircase`)
        rate = initial_learning_rate / (1 + decay_rate * p)

    Args:
        initial_learning_rate: the rate at step 0.
        decay_steps: number of steps, above 0.
        decay_rate: the amount added to the divisor every `decay_steps` steps.
        staircase: whether the rate changes only once every `decay_steps` steps.
        name: as in `ExponentialDecay`, which also lists the errors.

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
