"""The program of parameters that do not move: it keeps nothing and does nothing."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_keras.engine.core import Layout
from jaxopt_keras.engine.state import State
from jaxopt_keras.engine.stored import wide
from jaxopt_keras.language.options import Options


@dataclass(frozen=True)
class Still:
    """No slots, no updates."""

    options: Options = Options()

    def init(self, params: Any, hyper: dict[str, Any]) -> State:
        layout, leaves = Layout.read(params, self.options)
        return State(jnp.zeros((), jnp.int32), hyper, {}, layout.unflatten([{} for _ in leaves]))

    def step(self, params: Any, state: State, grads: Any, hyper: dict[str, Any], reduce: bool = True) -> Any:
        return params, state

    def update(self, grads: Any, state: State, params: Any, hyper: dict[str, Any], reduce: bool = True) -> Any:
        return jax.tree.map(lambda p: jnp.zeros_like(wide(p)), grads if params is None else params), state

    def averaged(self, params: Any, state: State, hyper: dict[str, Any]) -> Any:
        return params

    def summed(self, params: Any, grads: Any) -> Any:
        return grads
