"""The optimizers that are compared: every one of the library, two with a schedule, and AdamW with each modifier."""

from collections.abc import Callable
from typing import Any

from jaxopt_keras.optimizers import FUNCTIONS, MODIFIERS, MORE_FUNCTIONS
from jaxopt_keras.pure.kernel import Kernel
from jaxopt_keras.schedules import CosineDecay

Make = Callable[[Any, int], Kernel]  # of a rate, which may be traced, and of the number of steps
BASE, OPTIONS = FUNCTIONS["adamw"], {"engine": "xla"}  # all rates are trained in one program
AROUND = {rule.__module__.rsplit(".", 1)[-1] for rule in MODIFIERS.values()}

# The middle of the rates, where the default is too low for any task: the paper's for Adadelta, AdamW's for Sophia.
MIDDLE = {"adadelta": 1.0, "ftrl": 0.1, "sophia_g": 1e-3}


def alone(function: Callable[..., Kernel]) -> Make:
    return lambda rate, steps: function(rate, **OPTIONS)


def around(modifier: Callable[..., Kernel]) -> Make:
    return lambda rate, steps: modifier(BASE(rate, **OPTIONS))


def with_cosine(function: Callable[..., Kernel]) -> Make:
    return lambda rate, steps: function(lambda step: rate * CosineDecay(1.0, steps)(step), **OPTIONS)


OPTIMIZERS: dict[str, Make] = {name: alone(function) for name, function in FUNCTIONS.items()}
OPTIMIZERS |= {name: alone(function) for name, function in MORE_FUNCTIONS.items() if name not in AROUND}
OPTIMIZERS |= {f"{name}+cosine": with_cosine(FUNCTIONS[name]) for name in ("adamw", "prodigy")}
OPTIMIZERS |= {f"adamw+{name}": around(function) for name, function in MORE_FUNCTIONS.items() if name in AROUND}


def middle_rate(name: str) -> float:
    """The default rate of an optimizer, with or without something around it."""
    name = name.split("+")[0]
    return MIDDLE[name] if name in MIDDLE else (FUNCTIONS | MORE_FUNCTIONS)[name]().rule.learning_rate
