"""The type of schedules, and the base class for your own."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Self, TypeAlias

from jax.typing import ArrayLike

Schedule: TypeAlias = Callable[[Any], ArrayLike]
"""A function from the step to the learning rate."""


class LearningRateSchedule:
    """The base class for schedules of your own: override `__call__`, and `get_config` to make them serializable.

    `__call__` runs inside the compiled update, where `step` is a traced integer: choose with `jnp.where`, not `if`.
    Do not change the attributes of a schedule after an optimizer has it: compiled programs would keep the old values.

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
        """Return the learning rate at `step`."""
        raise NotImplementedError(
            f"`{type(self).__name__}` must define `__call__(self, step)`: the learning rate at that step. "
            "For example: `return self.initial_learning_rate / (step + 1)`."
        )

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as a dict that can be saved as JSON."""
        raise NotImplementedError(
            f"`{type(self).__name__}` must define `get_config(self)` to be serializable: its constructor's arguments. "
            "For example: `return {'initial_learning_rate': self.initial_learning_rate}`."
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Return the schedule of a `get_config`; `config` is not changed."""
        return cls(**config)


def is_schedule(x: Any) -> bool:
    """Whether `x` is a schedule: a `LearningRateSchedule`, or a function that takes the step.

    A function without arguments is not a schedule; one whose signature cannot be read is.

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
