"""The base class of the built-in schedules, and curves that several of them share."""

import math
from dataclasses import Field, fields
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxopt_keras.language.printing import arguments_of, call
from jaxopt_keras.schedules.base import LearningRateSchedule


class BuiltIn(LearningRateSchedule):
    """A built-in schedule: each is a frozen dataclass with its arguments and `_rate`."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]  # for the type checker: every subclass is a dataclass
    name: str | None

    def __post_init__(self) -> None:
        for field in fields(self):
            for check in getattr(field.type, "__metadata__", ()):
                object.__setattr__(self, field.name, check(field.name, getattr(self, field.name)))

    # The dataclasses have eq=False: their own equality would ignore other attributes of a subclass.
    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), frozenset(vars(self).items())))

    def __repr__(self) -> str:
        return call(type(self).__name__, *arguments_of(self))

    def __call__(self, step: ArrayLike) -> Array:
        with jax.named_scope(self.name or type(self).__name__):
            return self._rate(jnp.asarray(step, jnp.result_type(float)))

    def _rate(self, step: Array) -> Array:
        """Compute the rate at `step`, a float array."""
        raise NotImplementedError(f"`{type(self).__name__}` must define `_rate(self, step)`.")

    def get_config(self) -> dict[str, Any]:
        config = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in config.items()}


def warm_up(step: Array, steps: float, initial: float, peak: float, after: Array) -> Array:
    """Return the rate of a linear warm-up from `initial` to `peak` in `steps` steps; after it, return `after`."""
    if steps == 0:
        return after
    return jnp.where(step < steps, initial + (peak - initial) * (step / steps), after)


def half_cosine(p: Array) -> Array:
    """Return half a cosine wave: 1 at p = 0, 0 at p = 1."""
    return (1 + jnp.cos(math.pi * p)) / 2
