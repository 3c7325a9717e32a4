"""A program that keeps slots in host memory between steps.

They are moved to the device at the start of a step and back at its end. The transfers are part of the compiled program,
so that they overlap with computation. It must be the outermost program: not every backend can compute on arrays in host
memory.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from jaxopt_keras.engine.programs.around import Around
from jaxopt_keras.engine.state import State
from jaxopt_keras.language.paths import path_of


@dataclass(frozen=True)
class Offloaded(Around):
    """Keeps slots of `inner` in host memory: those with one of `patterns` in their "path/slot"."""

    patterns: tuple[str, ...]

    def init(self, params: Any, hyper: dict[str, Any]) -> State:
        return self._to_host(self.inner.init(params, hyper))

    def call(self, params: Any, state: State, grads: Any, hyper: dict[str, Any], reduce: bool, write: bool) -> Any:
        out, state = self.inner.call(params, self._to_device(state), grads, hyper, reduce, write)
        return out, self._to_host(state)

    def averaged(self, params: Any, state: State, hyper: dict[str, Any]) -> Any:
        return self.inner.averaged(params, self._to_device(state), hyper)

    def _to_device(self, state: State) -> State:
        return self._moved(state, jax.memory.Space.Device)

    def _to_host(self, state: State) -> State:
        return self._moved(state, jax.memory.Space.Host)

    def _moved(self, state: State, space: Any) -> State:
        def one(key: Any, x: Any) -> Any:
            path = f"{path_of(key[1:])}/{key[0].key}"
            return jax.device_put(x, space) if any(re.search(pattern, path) for pattern in self.patterns) else x

        return state._replace(slots=jax.tree_util.tree_map_with_path(one, state.slots))


def outermost(program: Any, around: Callable[[Any], Any]) -> Any:
    """Return `around(program)`; if `program` is offloaded, `around` is applied inside the offload."""
    if isinstance(program, Offloaded):
        return Offloaded(around(program.inner), program.patterns)
    return around(program)
