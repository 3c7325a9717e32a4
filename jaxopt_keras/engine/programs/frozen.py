"""The program of frozen parameters: no slots, no updates."""

from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp

from jaxopt_keras.engine.core import Layout, Program
from jaxopt_keras.engine.plan import Plan, frozen_entry, grouped
from jaxopt_keras.engine.state import State
from jaxopt_keras.engine.state_check import check_names
from jaxopt_keras.engine.write_back import zero_amount
from jaxopt_keras.language.options import Options
from jaxopt_keras.language.paths import leaves_by_path
from jaxopt_keras.packing.trees import unpacked


@dataclass(frozen=True)
class Frozen(Program):
    """Returns parameters unchanged."""

    options = Options()

    def init(self, params: Any, hyper: dict[str, Any]) -> State:
        Layout.read(params, self.options)
        return State(jnp.zeros((), jnp.int32), {}, {}, {})

    def call(self, params: Any, state: State, grads: Any, hyper: dict[str, Any], reduce: bool, write: bool) -> Any:
        check_names("slots", (name for name, tree in unpacked(state.slots).items() if jax.tree.leaves(tree)), ())
        check_names("scalars", state.scalars, ())
        if write:
            return params, state
        layout, like = Layout.read(params, self.options, grads)
        amounts = [*map(zero_amount, layout.flatten(grads, "grads"), like)]
        return layout.unflatten(amounts, layout.frozen_amounts(grads)), state

    def replaced(self, **numbers: Any) -> Self:
        if numbers:
            raise ValueError(f"Frozen parameters have no hyperparameters. Received: {sorted(numbers)}")
        return self

    def describe(self, params: Any, state: Any = None) -> Any:
        return Plan(grouped(frozen_entry(path, p) for path, p in leaves_by_path(params)), 0)
