"""Implementations of a step, and their runs: they make a step, wait for it, and return the parameters."""

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
    """An implementation with parameters and state."""

    def step(self) -> None:
        """Start one step, without waiting for its end."""
        ...

    def block(self) -> None:
        """Wait for the parameters and the state."""
        ...

    def params(self) -> dict[str, NDArray[Any]]: ...

    def held(self) -> int:
        """Return the bytes of parameters and state."""
        ...


@dataclass(frozen=True)
class Implementation:
    """One way to make a step."""

    name: str
    library: str
    start: Callable[[Problem], Run]
    variant: str = "optax"  # the formula
    storage: str = "float32"  # of the slots
    sparse: Literal["dense", "lazy"] = "dense"  # the treatment of a gradient of rows
    copies: float = 3.0  # the memory that it needs without gradients, as a multiple of the parameters
    refused: str | None = None  # the reason why it is not timed

    def refusing(self, reason: str) -> Self:
        return replace(self, refused=reason)


class Wish(NamedTuple):
    """A measurement to make, for which each library returns a list of `Implementation`s."""

    workload: Workload
    rule: type[Rule]
    dtype: str
    storages: tuple[str, ...]
    platform: str  # "cpu", "gpu" or "tpu"
    threads: int
    variants: tuple[str, ...]  # the formulas of the selected libraries

    @property
    def variant(self) -> str:
        """Return the formula of implementations that have no other."""
        return "optax" if "optax" in self.rule.variants else "keras"


class Loop:
    """A loop over a jitted pure function `(params, state, given) -> (params, state)`."""

    def __init__(self, function: Any, params: Any, state: Any, given: list[Any]) -> None:
        self.function, self.carried, self.given, self.count = function, (params, state), given, 0

    def step(self) -> None:
        self.carried = self.function(*self.carried, self.given[self.count % len(self.given)])
        self.count += 1

    def block(self) -> None:
        jax.block_until_ready(self.carried[0])  # all results of a call are ready together

    def params(self) -> dict[str, NDArray[Any]]:
        return {name: np.asarray(p) for name, p in self.carried[0].items()}

    def held(self) -> int:
        return sum(x.nbytes for x in jax.tree.leaves(self.carried))

    def compiled(self) -> Any:
        """Return the compiled program, with `.as_text()` and `.memory_analysis()`."""
        return self.function.lower(*self.carried, self.given[0]).compile()


def short(error: BaseException) -> str:
    """Format an error in one line, for a table."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:160]
