"""A core around a transformation of optax's protocol: `init(params)` and `update(updates, state, params)`."""

import inspect
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from jaxopt_keras.engine.core import Core, Layout, Leaf, Now, Slots
from jaxopt_keras.language.options import Options

STATE = "transformation"  # the name of the transformation's state among the scalars
EXTRA = "extra"  # the name of its keyword arguments among the hyperparameters


@dataclass(frozen=True)
class Foreign(Core):
    """Runs `tx` on the whole tree. Its learning rate and state are its own."""

    whole: ClassVar[bool] = True

    tx: Any
    any_slots: bool = False

    def __post_init__(self) -> None:
        if not (callable(getattr(self.tx, "init", None)) and callable(getattr(self.tx, "update", None))):
            raise TypeError(
                "`tx` must have `init(params)` and `update(updates, state, params)`, like an "
                f"`optax.GradientTransformation`. Received: tx={self.tx!r} ({type(self.tx).__name__})"
            )

    def check(self, options: Options) -> None:
        """Raise a ValueError for an option that would have no effect on the transformation."""
        if options.gradient_accumulation_steps and options.schedule_counts == "calls":
            raise ValueError(
                "The schedules of an optax transformation count its updates. Received: "
                f'schedule_counts="calls", gradient_accumulation_steps={options.gradient_accumulation_steps}. Leave '
                "out `schedule_counts`, and give `optax` schedules of the number of updates."
            )

    def extra(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments that `tx.update` accepts, as part of the hyperparameters of a call."""
        known = inspect.signature(self.tx.update).parameters.values()
        if not any(p.kind is p.VAR_KEYWORD for p in known):
            given = {name: given[name] for name in given.keys() & {p.name for p in known}}
        # `Partial` makes a function static for `jit`.
        return {EXTRA: jax.tree.map(lambda x: Partial(x) if callable(x) else x, given)}

    def scalar_names(self, hyper: dict[str, Any]) -> tuple[str, ...]:
        return (STATE,)

    def init(self, layout: Layout, params: list[Any], hyper: dict[str, Any]) -> tuple[list[Slots], Slots]:
        return [{} for _ in params], {STATE: self.tx.init(layout.unflatten(params))}

    def decoupled(self, leaf: Leaf, p: Array, now: Now) -> Any:
        if now.weight_decay is None:
            return None
        raise ValueError(
            "`weight_decay` needs a learning rate, but that of an optax transformation is not known. Put the decay "
            "inside the transformation: optax.chain(..., optax.add_decayed_weights(...), ...)."
        )

    def update(
        self, layout: Layout, grads: list[Any], params: list[Any], slots: list[Slots], scalars: Slots, now: Now
    ) -> tuple[list[Any], list[Slots], Slots]:
        filled = [jnp.zeros_like(p) if g is None else g for g, p in zip(grads, params, strict=True)]
        tree = None if any(p is None for p in params) else layout.unflatten(params)
        try:
            updates, state = self.tx.update(layout.unflatten(filled), scalars[STATE], tree, **now.hyper.get(EXTRA, {}))
        except TypeError as error:
            if "required keyword-only argument" not in str(error):
                raise
            raise TypeError(
                f"This transformation needs more than gradients. Received: {error}. Pass the missing arguments by "
                "keyword, in the pure face: `Kernel.from_optax(tx).step(params, state, grads, value=...)`, or `update`."
            ) from error
        state = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), state, scalars[STATE])
        steps = [None if g is None else u for g, u in zip(grads, jax.tree.leaves(updates), strict=True)]
        return steps, slots, {STATE: state}
