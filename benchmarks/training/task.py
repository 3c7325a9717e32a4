"""A task: a start, a loss, and the value of the loss at which the task is solved."""

from collections.abc import Callable
from typing import Any, NamedTuple

Loss = Callable[[Any, Any], Any]


class Task(NamedTuple):
    name: str
    about: str
    params: Any  # the start
    loss: Loss  # of the parameters and of a random key: what is differentiated
    target: float
    steps: int
    exact: Loss | None = None  # what the target is of, if the loss has noise
