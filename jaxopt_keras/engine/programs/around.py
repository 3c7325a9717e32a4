"""The base class of programs around a program: it delegates every method, and a subclass overrides some."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from jaxopt_keras.engine.core import Program
from jaxopt_keras.engine.state import State


@dataclass(frozen=True)
class Around(Program):
    """Runs `inner`."""

    inner: Program

    @property
    def options(self) -> Any:
        return self.inner.options

    @property
    def children(self) -> tuple[Program, ...]:
        return (self.inner,)

    def init(self, params: Any, hyper: dict[str, Any]) -> State:
        return self.inner.init(params, hyper)

    def call(self, params: Any, state: State, grads: Any, hyper: dict[str, Any], reduce: bool, write: bool) -> Any:
        return self.inner.call(params, state, grads, hyper, reduce, write)

    def points(self, params: Any, state: State, grads: Any, hyper: Any) -> tuple[Any, Any]:
        inner: Any = self.inner
        return inner.points(params, state, grads, hyper)

    def averaged(self, params: Any, state: State, hyper: dict[str, Any]) -> Any:
        return self.inner.averaged(params, state, hyper)

    def summed(self, params: Any, grads: Any, hyper: Any, reduce: bool = True) -> tuple[Any, Any]:
        return self.inner.summed(params, grads, hyper, reduce)

    def hyper(self) -> dict[str, Any]:
        return self.inner.hyper()

    def injected(self, hyper: dict[str, Any]) -> dict[str, Any]:
        return self.inner.injected(hyper)

    def schedules(self, injected: bool = True) -> dict[str, Any]:
        return self.inner.schedules(injected)

    def offered(self, hyper: Any, given: dict[str, Any]) -> Any:
        return self.inner.offered(hyper, given)

    def skeleton(self) -> Self:
        return dataclasses.replace(self, inner=self.inner.skeleton())

    def replaced(self, **numbers: Any) -> Self:
        return dataclasses.replace(self, inner=self.inner.replaced(**numbers))

    def describe(self, params: Any, state: Any = None) -> Any:
        return self.inner.describe(params, state)

    def loss_scale(self, state: State) -> Any:
        return self.inner.loss_scale(state)


def plain_programs(program: Program) -> list[Any]:
    """Return the programs at the leaves of the tree of programs, in order."""
    return [leaf for child in program.children for leaf in plain_programs(child)] if program.children else [program]
