"""The program of frozen parameters: no slots, no updates."""

from dataclasses import dataclass
from typing import Any, Self

import jax.numpy as jnp

from jaxopt_keras.engine.core import Layout, Program
from jaxopt_keras.engine.plan import frozen_plan
from jaxopt_keras.engine.slot_storage import upcast
from jaxopt_keras.engine.state import State
from jaxopt_keras.language.options import Options


@dataclass(frozen=True)
class Frozen:
    """Returns parameters unchanged."""

    options: Options = Options()
    children: tuple[Program, ...] = ()

    def init(self, params: Any, hyper: dict[str, Any]) -> State:
        Layout.read(params, self.options)
        return State(jnp.zeros((), jnp.int32), {}, {}, {})

    def step(self, params: Any, state: State, grads: Any, hyper: dict[str, Any], reduce: bool = True) -> Any:
        return params, state

    def update(self, grads: Any, state: State, params: Any, hyper: dict[str, Any], reduce: bool = True) -> Any:
        layout, like = Layout.read(grads if params is None else params, self.options, of_gradients=params is None)
        given = layout.flatten(grads, "grads")
        return layout.unflatten(
            [None if g is None else jnp.zeros_like(upcast(p)) for g, p in zip(given, like, strict=True)]
        ), state

    def averaged(self, params: Any, state: State, hyper: dict[str, Any]) -> Any:
        return params

    def summed(self, params: Any, grads: Any) -> Any:
        return grads

    def hyper(self) -> dict[str, Any]:
        return {}

    def injected(self, hyper: dict[str, Any]) -> dict[str, Any]:
        return {}

    def skeleton(self) -> Self:
        return self

    def replaced(self, **numbers: Any) -> Self:
        if numbers:
            raise ValueError(f"Frozen parameters have no hyperparameters. Received: {sorted(numbers)}")
        return self

    def describe(self, params: Any) -> Any:
        return frozen_plan(params)

    def loss_scale(self, state: State) -> Any:
        return None
