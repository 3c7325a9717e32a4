"""A transformation of the optax protocol as a core: anything with `init(params)` and `update(g, state, params)`."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.engine.core import Layout, Leaf, Now, Slots
from jaxopt_keras.rule import Slot

STATE = "transformation"  # the foreign state's place among the scalars


@dataclass(frozen=True)
class Foreign:
    """Runs `tx` on the whole tree. It has its learning rate, and its state, to itself."""

    whole: ClassVar[bool] = True
    takes_rows: ClassVar[bool] = False

    tx: Any

    def __post_init__(self) -> None:
        if not (callable(getattr(self.tx, "init", None)) and callable(getattr(self.tx, "update", None))):
            raise TypeError(
                "`tx` must have `init(params)` and `update(updates, state, params)`, as an "
                f"`optax.GradientTransformation` has. Received: tx={self.tx!r} ({type(self.tx).__name__})"
            )

    def arrays(self) -> dict[str, Any]:
        return {}

    def skeleton(self) -> "Foreign":
        return self

    @property
    def schedule(self) -> Any:
        return None

    @property
    def elementwise(self) -> bool:
        return False

    def init(self, layout: Layout, params: list[Any], hyper: dict[str, Any]) -> tuple[list[Slots], Slots]:
        return [{} for _ in params], {STATE: self.tx.init(layout.unflatten(params))}

    def kinds(self, leaf: Leaf, p: Any) -> dict[str, Slot]:
        return {}

    def decoupled(self, leaf: Leaf, p: Array, now: Now) -> Any:
        if now.weight_decay is None:
            return None
        raise ValueError(
            "`weight_decay` needs a learning rate, and a foreign transformation has its own. Put the decay inside it: "
            "optax.chain(..., optax.add_decayed_weights(...), ...)."
        )

    def update(
        self, layout: Layout, grads: list[Any], params: list[Any], slots: list[Slots], scalars: Slots, now: Now
    ) -> tuple[list[Any], list[Slots], Slots]:
        filled = [jnp.zeros_like(p) if g is None else g for g, p in zip(grads, params, strict=True)]
        tree = None if any(p is None for p in params) else layout.unflatten(params)
        updates, state = self.tx.update(layout.unflatten(filled), scalars[STATE], tree)
        state = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), state, scalars[STATE])
        steps = [None if g is None else u for g, u in zip(grads, jax.tree.leaves(updates), strict=True)]
        return steps, slots, {STATE: state}

    def averaged(self, leaf: Leaf, p: Any, slots: Slots, hyper: dict[str, Any]) -> Any:
        return p
