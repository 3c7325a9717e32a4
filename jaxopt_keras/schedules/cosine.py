"""Cosine schedules: a single decay with an optional warm-up, and a decay with restarts."""

import math
from dataclasses import dataclass
from typing import Annotated

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxopt_keras.schedules.arguments import Delay, Factor, Name, Rate, Span, amount_or_none, growth
from jaxopt_keras.schedules.builtin import BuiltIn, half_cosine, warm_up


@dataclass(frozen=True, eq=False, repr=False)
class CosineDecay(BuiltIn):
    """Cosine decay: half a cosine wave, after an optional linear warm-up.

        peak = warmup_target                   (initial_learning_rate, and no warm-up, if that is None)
        rate = initial_learning_rate + (peak - initial_learning_rate) * step / warmup_steps    while step < warmup_steps
        p    = min(step - warmup_steps, decay_steps) / decay_steps
        rate = peak * ((1 - alpha) * (1 + cos(pi * p)) / 2 + alpha)                            from then on

    From Loshchilov & Hutter 2016 (arXiv:1608.03983); the warm-up from Goyal et al. 2017 (arXiv:1706.02677).

    Args:
        initial_learning_rate: the rate at step 0.
        decay_steps: number of steps of the decay, above 0, without the warm-up. (optax's `decay_steps` includes it.)
        alpha: the final rate as a fraction of `peak`.
        name: as in `ExponentialDecay`, which also lists the errors.
        warmup_target: the rate at the end of the warm-up; None: no warm-up.
        warmup_steps: number of steps of the warm-up, at least 0.

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
        decayed = peak * ((1 - self.alpha) * half_cosine(p) + self.alpha)
        return warm_up(step, warmup_steps, self.initial_learning_rate, peak, decayed)


@dataclass(frozen=True, eq=False, repr=False)
class CosineDecayRestarts(BuiltIn):
    """Cosine decay with restarts: each wave is `t_mul` times as long and `m_mul` times as high as the one before.

        i    = number of restarts so far
        p    = steps since the last restart / (first_decay_steps * t_mul ** i)
        rate = initial_learning_rate * ((1 - alpha) * m_mul ** i * (1 + cos(pi * p)) / 2 + alpha)

    SGDR, Loshchilov & Hutter 2016 (arXiv:1608.03983).

    Args:
        initial_learning_rate: the rate at step 0.
        first_decay_steps: number of steps of the first wave, above 0.
        t_mul: factor of the length, 1 or at least 1.0001. (Below 1 all waves end at some step; Keras then gives NaN.)
        m_mul: factor of the height, at least 0.
        alpha: the lowest rate as a fraction of `initial_learning_rate`.
        name: as in `ExponentialDecay`, which also lists the errors.

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
        return self.initial_learning_rate * ((1 - self.alpha) * self.m_mul**i * half_cosine(p) + self.alpha)

    def _wave(self, step: Array) -> tuple[Array, Array]:
        """Return the number of restarts before `step`, and the fraction of the present wave that is done."""
        n, t = float(self.first_decay_steps), self.t_mul
        if t == 1:
            i = step // n
            return i, (step - i * n) / n
        # The waves that begin before step 2**31, in float64 on the host: float32 logarithms can select a wrong wave.
        waves = t ** np.arange(1 + int(math.log1p(2**31 * (t - 1) / n) / math.log(t)))
        starts = n * (waves - 1) / (t - 1)
        # Rounded: float64 errors would put some starts just after a whole step.
        rounded = jnp.asarray(starts.round(6), step.dtype)
        i = jnp.searchsorted(rounded, step, side="right", method="compare_all") - 1
        p = (step - jnp.asarray(starts, step.dtype)[i]) / jnp.asarray(n * waves, step.dtype)[i]
        return i.astype(step.dtype), p
