"""Learning-rate schedules: functions from the step to a rate.

`step` is the number of updates already made: 0 at the first. Any function of it is a schedule, also one of optax's. The
classes here are also values: equal ones share one compiled program, their `repr` is the call that makes them, and they
can be saved as JSON. Arguments, defaults and rates are Keras 3's, with three differences:

- An integer initial rate is converted to a float. (Keras computes in integers: `ExponentialDecay(1, 10, 0.5)` is 1, 0,
  0, ...)
- Stairs, cycles and restarts start at the exact step, up to step 2**24 in float32. (In Keras, rounding errors of
  `step / decay_steps` or of a logarithm can move them by a step.)
- A rate that is negative, or would become NaN during the training, raises an error in the constructor.

Each class takes the step as an int or an integer array of any shape, and returns a float32 array of that shape (float64
under `jax_enable_x64`). Every constructor raises a `TypeError` for an argument of the wrong type and a `ValueError` for
one out of its range.
"""

from jaxopt_keras.schedules.base import LearningRateSchedule, Schedule, is_schedule
from jaxopt_keras.schedules.composed import Join, OneCycle
from jaxopt_keras.schedules.configs import deserialize, serialize
from jaxopt_keras.schedules.cosine import CosineDecay, CosineDecayRestarts
from jaxopt_keras.schedules.decays import ExponentialDecay, InverseTimeDecay, PiecewiseConstantDecay, PolynomialDecay
from jaxopt_keras.schedules.plots import plot
from jaxopt_keras.schedules.warmups import InverseSqrtDecay, WarmupStableDecay

__all__ = [
    "CosineDecay",
    "CosineDecayRestarts",
    "ExponentialDecay",
    "InverseSqrtDecay",
    "InverseTimeDecay",
    "Join",
    "LearningRateSchedule",
    "OneCycle",
    "PiecewiseConstantDecay",
    "PolynomialDecay",
    "Schedule",
    "WarmupStableDecay",
    "deserialize",
    "is_schedule",
    "plot",
    "serialize",
]
