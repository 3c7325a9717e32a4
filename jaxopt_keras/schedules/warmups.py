"""Schedules that start with a warm-up: warm-up, plateau and decay; the Transformer's inverse square root."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.schedules.arguments import Check, Delay, Name, Rate, Span
from jaxopt_keras.schedules.builtin import BuiltIn, half_cosine, warm_up

_SHAPES: dict[str, Callable[[Array], Array]] = {
    "linear": lambda p: 1 - p,
    "cosine": half_cosine,
    "sqrt": lambda p: 1 - jnp.sqrt(p),
}
_shape = Check("a string", (str,), f"one of {list(_SHAPES)}", lambda value: value in _SHAPES)


@dataclass(frozen=True, eq=False, repr=False)
class WarmupStableDecay(BuiltIn):
    """Linear warm-up, constant plateau, short decay: the length of the training need not be known at its start.

        rate = initial_learning_rate + (peak_learning_rate - initial_learning_rate) * step / warmup_steps
                                                                                 while step < warmup_steps
        p    = (step - warmup_steps - stable_steps) / decay_steps                (clipped to 0 ... 1)
        rate = end_learning_rate + (peak_learning_rate - end_learning_rate) * f(p)     from then on
        f(p) = 1 - p ("linear"),  (1 + cos(pi * p)) / 2 ("cosine"),  1 - sqrt(p) ("sqrt")

    WSD, Hu et al. 2024 (arXiv:2404.06395); the "sqrt" decay from Hägele et al. 2024 (arXiv:2405.18392).

    Args:
        peak_learning_rate: the rate of the plateau.
        warmup_steps: number of steps of the warm-up, at least 0.
        stable_steps: number of steps of the plateau, at least 0.
        decay_steps: number of steps of the decay, above 0.
        initial_learning_rate: the rate at step 0.
        end_learning_rate: the rate at the end of the decay and after it.
        decay: shape of the decay.
        name: as in `ExponentialDecay`, which also lists the errors.

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
        return warm_up(step, self.warmup_steps, self.initial_learning_rate, peak, after)


@dataclass(frozen=True, eq=False, repr=False)
class InverseSqrtDecay(BuiltIn):
    """Linear warm-up, then a decay with the inverse square root of the step, without an end.

        rate = initial_learning_rate + (peak_learning_rate - initial_learning_rate) * step / warmup_steps
                                                                                 while step < warmup_steps
        rate = peak_learning_rate * sqrt(warmup_steps / step)                    from then on

    The Transformer's schedule, Vaswani et al. 2017 (arXiv:1706.03762, equation 3): for a model of width d its peak is
    `(d * warmup_steps) ** -0.5`. With `initial_learning_rate = peak_learning_rate = warmup_steps ** -0.5` it is T5's
    `1 / sqrt(max(step, warmup_steps))`, Raffel et al. 2019 (arXiv:1910.10683).

    Args:
        peak_learning_rate: the rate at step `warmup_steps`, the highest.
        warmup_steps: number of steps of the warm-up, above 0; 4000 in the Transformer, 10000 in T5.
        initial_learning_rate: the rate at step 0.
        name: as in `ExponentialDecay`, which also lists the errors.

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
        return warm_up(step, w, self.initial_learning_rate, peak, peak * jnp.sqrt(w / jnp.maximum(step, w)))
