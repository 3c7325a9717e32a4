"""An implementation at work: something that makes a step, waits for it, and shows its parameters."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol, Self

import jax
import numpy as np
from numpy.typing import NDArray

from benchmarks.problem import Problem
from benchmarks.workloads import Workload
from jaxopt_keras.language.rule import Rule


class Run(Protocol):
    """One implementation in the middle of its work."""

    def step(self) -> None:
        """Starts one step; it may still be under way afterwards."""
        ...

    def block(self) -> None:
        """Waits for all that the steps wrote, parameters and state."""
        ...

    def params(self) -> dict[str, NDArray[Any]]: ...

    def held(self) -> int:
        """The bytes of parameters and state."""
        ...


@dataclass(frozen=True)
class Implementation:
    """One way to make the step."""

    name: str
    library: str
    start: Callable[[Problem], Run]
    variant: str = "optax"  # whose formula
    storage: str = "float32"  # of the slots
    sparse: Literal["dense", "lazy"] = "dense"  # what a gradient of rows means
    copies: float = 3.0  # memory that it needs, as a multiple of the parameters', gradients apart
    refused: str | None = None  # why it is not timed

    def refusing(self, reason: str) -> Self:
        return replace(self, refused=reason)


class Wish(NamedTuple):
    """What is to be measured: what a library answers with a list of `Implementation`s."""

    workload: Workload
    rule: type[Rule]
    dtype: str
    storages: tuple[str, ...]
    platform: str  # "cpu", "gpu" or "tpu"
    threads: int
    variants: tuple[str, ...]  # that the chosen peers have

    @property
    def variant(self) -> str:
        """The formula for all that do not say another."""
        return "optax" if "optax" in self.rule.variants else "keras"


class Loop:
    """A pure function `(params, state, given) -> (params, state)`, jitted, again and again."""

    def __init__(self, function: Any, params: Any, state: Any, given: list[Any]) -> None:
        self.function, self.carried, self.given, self.count = function, (params, state), given, 0

    def step(self) -> None:
        self.carried = self.function(*self.carried, self.given[self.count % len(self.given)])
        self.count += 1

    def block(self) -> None:
        jax.block_until_ready(self.carried[0])  # all results of a call come at once

    def params(self) -> dict[str, NDArray[Any]]:
        return {name: np.asarray(p) for name, p in self.carried[0].items()}

    def held(self) -> int:
        return sum(x.nbytes for x in jax.tree.leaves(self.carried))

    def compiled(self) -> Any:
        """What XLA made of it: `.as_text()`, `.memory_analysis()`."""
        return self.function.lower(*self.carried, self.given[0]).compile()


def short(error: BaseException) -> str:
    """An error in one line of a table."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:160]
