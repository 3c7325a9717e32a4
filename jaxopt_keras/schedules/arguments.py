"""Types of a schedule's arguments: each is annotated with its check, which signatures show."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import NoneType
from typing import Annotated, Any

import numpy as np
from jax import Array
from jax.core import Tracer


@dataclass(frozen=True)
class Check:
    """Validates an argument, and converts it to the value to store."""

    kind: str
    types: tuple[type, ...]
    rule: str = ""
    holds: Callable[[Any], bool] = lambda value: True
    convert: Callable[[Any], Any] = lambda value: value
    remedy: str = ""

    def __repr__(self) -> str:
        return self.rule or self.kind

    def __call__(self, name: str, value: Any) -> Any:
        if value is None and NoneType in self.types:
            return None
        received = f"Received: {name}={value!r}"
        if isinstance(value, np.generic | np.ndarray | Array) and value.ndim == 0 and not isinstance(value, Tracer):
            value = value.item()
        if not isinstance(value, self.types) or (isinstance(value, bool) and bool not in self.types):
            raise TypeError(f"`{name}` must be {self.kind}. {received} ({type(value).__name__})")
        if not self.holds(value):
            raise ValueError(f"`{name}` must be {self.rule}. {received}{self.remedy}")
        return self.convert(value)


@dataclass(frozen=True)
class Each:
    """Applies a check to every entry of a list, and converts it to a tuple."""

    check: Check

    def __repr__(self) -> str:
        return f"each {self.check}"

    def __call__(self, name: str, value: Any) -> tuple[float, ...]:
        if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray | Array):
            raise TypeError(f"`{name}` must be a list or tuple of numbers. Received: {name}={value!r}")
        return tuple(self.check(f"{name}[{i}]", entry) for i, entry in enumerate(value))


def exact(value: float) -> float:
    # JAX converts an int to int32. A larger one is converted to a float here, as the arithmetic would.
    return value if value < 2**31 else float(value)


number = partial(Check, "a number", (int, float))
amount = number("at least 0 and finite", lambda x: 0 <= x < math.inf, convert=float)
growth = number("1, or at least 1.0001 and finite", lambda x: x == 1 or 1.0001 <= x < math.inf, convert=float)
delay = number("at least 0 and finite", lambda x: 0 <= x < math.inf, convert=exact)
span = number(
    "above 0 and finite",
    lambda x: 0 < x < math.inf,
    convert=exact,
    remedy=". For a constant rate, pass the number itself, not a schedule.",
)
amount_or_none = replace(
    amount, kind="a number or None", types=(int, float, NoneType), rule="None, or at least 0 and finite"
)

Rate = Annotated[float, amount]
Factor = Annotated[float, amount]
Span = Annotated[float, span]  # a number of steps
Delay = Annotated[float, delay]  # a number of steps that may be 0
Flag = Annotated[bool, Check("True or False", (bool,))]
Name = Annotated[str | None, Check("a string", (str, NoneType))]
