"""A program that keeps slots in host memory between steps.

They are moved to the device at the start of a step and back at its end. The transfers are part of the compiled program,
so that they overlap with computation. It must be the outermost program: not every backend can compute on arrays in host
memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from jaxopt_keras.engine.programs.around import Around
from jaxopt_keras.engine.state import State
from jaxopt_keras.language.paths import first_match, map_by_path
from jaxopt_keras.storage.blockwise import Blocks


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
        def one(path: str, x: Any) -> Any:
            return x if first_match(self.patterns, path) is None else jax.device_put(x, space)

        is_leaf = lambda x: isinstance(x, Blocks)  # its codes and scales move together
        slots = {
            name: map_by_path(lambda path, x, name=name: one(f"{path}/{name}", x), tree, is_leaf)
            for name, tree in state.slots.items()
        }
        return state._replace(slots=slots)


def outermost(program: Any, around: Callable[[Any], Any]) -> Any:
    """Return `around(program)`; if `program` is offloaded, `around` is applied inside the offload."""
    if isinstance(program, Offloaded):
        return Offloaded(around(program.inner), program.patterns)
    return around(program)
