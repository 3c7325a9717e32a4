"""A program whose state, or a part of it, lies in host memory between two steps.

It comes to the device at the start of a step and goes back at its end; transfers are part of the compiled program, so
that they overlap with what does not need them. This stands outside of all that computes: arithmetic on arrays in host
memory is not possible everywhere.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from jaxopt_keras.engine.state import State
from jaxopt_keras.language.paths import path_of


@dataclass(frozen=True)
class Offloaded:
    """Keeps those slots of `inner` in host memory in whose "path/slot" one of `patterns` is found."""

    inner: Any
    patterns: tuple[str, ...]

    @property
    def options(self) -> Any:
        return self.inner.options

    def init(self, params: Any, hyper: dict[str, Any]) -> State:
        return self._away(self.inner.init(params, hyper))

    def step(self, params: Any, state: State, grads: Any, hyper: dict[str, Any], reduce: bool = True) -> Any:
        new, state = self.inner.step(params, self._here(state), grads, hyper, reduce=reduce)
        return new, self._away(state)

    def update(self, grads: Any, state: State, params: Any, hyper: dict[str, Any], reduce: bool = True) -> Any:
        deltas, state = self.inner.update(grads, self._here(state), params, hyper, reduce)
        return deltas, self._away(state)

    def averaged(self, params: Any, state: State, hyper: dict[str, Any]) -> Any:
        return self.inner.averaged(params, self._here(state), hyper)

    def summed(self, params: Any, grads: Any) -> Any:
        return self.inner.summed(params, grads)

    def _here(self, state: State) -> State:
        return self._moved(state, jax.memory.Space.Device)

    def _away(self, state: State) -> State:
        return self._moved(state, jax.memory.Space.Host)

    def _moved(self, state: State, space: Any) -> State:
        def one(key: Any, x: Any) -> Any:
            path = path_of(key)
            return jax.device_put(x, space) if any(re.search(pattern, path) for pattern in self.patterns) else x

        return state._replace(slots=jax.tree_util.tree_map_with_path(one, state.slots))


def outermost(program: Any, around: Callable[[Any], Any]) -> Any:
    """`around(program)`, but within an offload."""
    if isinstance(program, Offloaded):
        return Offloaded(around(program.inner), program.patterns)
    return around(program)
