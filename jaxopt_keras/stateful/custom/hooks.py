"""A user-defined optimizer class as a core of the pipeline: its hooks are traced, so they run compiled.

There are three generations of hooks: Keras 3 has `update_step(gradient, variable, learning_rate)`; tf.keras 2.11 has
`update_step(gradient, variable)`; earlier versions have `_resource_apply_dense(grad, var)` and
`_resource_apply_sparse(grad, var, indices)`. A subclass of a named optimizer has hooks too, if it overrides one: its
`update_step` runs the rule on one variable.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.engine.core import Core, Layout, Leaf, Now, Slots
from jaxopt_keras.engine.cores.leafwise import Leafwise
from jaxopt_keras.engine.state import State
from jaxopt_keras.language.rule import Slot
from jaxopt_keras.packing.trees import packed_like, unpacked
from jaxopt_keras.stateful.custom.attributes import Attributes
from jaxopt_keras.stateful.custom.errors import HookError, explained, frozen_attribute
from jaxopt_keras.stateful.scope import Scope
from jaxopt_keras.stateful.state_views import Place, View, read, with_values

INNER = "inner optimizers"
"""The name of the states of inner optimizers among the scalars."""


class Hooks(Core):
    """A core that runs the hooks of `optimizer` while its variables and state are mapped to the values of the step.

    Args:
        optimizer: it provides `hook_variables(paths)`, `view(place)`, `hooks_running()` and `run_step`.
        rate: the learning rate.
        core: the core of a named class's rule, which makes the slots; None: the user's code makes them.
    """

    whole: ClassVar[bool] = True  # hooks may read every variable
    takes_rows: ClassVar[bool] = True
    any_slots = True

    __hash__ = None  # type: ignore[assignment]  # unhashable, so that its programs are not cached for other optimizers

    def __init__(self, optimizer: Any, rate: Any = 0.001, core: Core | None = None) -> None:
        self.optimizer, self.rate, self.core = optimizer, rate, core or Core()

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Hooks) and self.optimizer is other.optimizer and self._own == other._own

    @property
    def _own(self) -> Any:
        return self.core.skeleton() if isinstance(self.core, Leafwise) else None

    @property
    def title(self) -> str:
        return type(self.optimizer).__name__

    def arrays(self) -> dict[str, Any]:
        rate = {} if self._own else {"learning_rate": jnp.asarray(self.rate, jnp.result_type(float))}
        return rate | self.core.arrays() | self.optimizer.hook_hyper()

    def replaced(self, **numbers: Any) -> "Hooks":
        return Hooks(self.optimizer, self.rate, self.core.replaced(**numbers)) if self._own else self

    def patterns(self) -> dict[str, tuple[str, ...]]:
        return self.core.patterns()

    def slot_names(self) -> tuple[str, ...]:
        return self.core.slot_names()

    def init(self, layout: Layout, params: list[Any], hyper: dict[str, Any]) -> tuple[list[Slots], Slots]:
        return self.core.init(layout, params, hyper)

    def kinds(self, leaf: Leaf, p: Any) -> dict[str, Slot]:
        return self.core.kinds(leaf, p)

    def decoupled(self, leaf: Leaf, p: Array, now: Now) -> Any:
        return self.core.decoupled(leaf, p, now)

    def averaged(self, leaf: Leaf, p: Array, slots: Slots, hyper: dict[str, Any]) -> Array:
        return self.core.averaged(leaf, p, slots, hyper)

    def update(
        self, layout: Layout, grads: list[Any], params: list[Any], slots: list[Slots], scalars: Slots, now: Now
    ) -> tuple[list[Any], list[Slots], Slots]:
        paths = [leaf.path for leaf in layout.leaves]
        arguments = grads, params, slots, scalars, now
        if not self.optimizer.jit_compile:
            with jax.disable_jit(False):
                return self._run(paths, *arguments)
        inner = self.optimizer._nested.values()
        before = Attributes(self.optimizer, *inner)
        try:
            result = self._run(paths, *arguments)
            if path := before.changed(Attributes(self.optimizer, *inner)):
                self._check_only_caches(path, before, paths, arguments)
        except BaseException:
            before.restore()
            raise
        return result

    def _check_only_caches(self, path: str, before: Attributes, paths: list[str], arguments: Any) -> None:
        """Raise an error if hooks that have changed the attribute at `path` compute something else the next time."""
        before.restore()
        (first, changed), (second, again) = (
            (str(jax.make_jaxpr(lambda *x: self._run(paths, *x))(*arguments)), Attributes(*before.roots))
            for _ in range(2)  # two functions: `make_jaxpr` traces each of them once
        )
        if first != second or (path := changed.changed(again) or ""):
            raise frozen_attribute(self.optimizer, path)

    def _run(
        self, paths: list[str], grads: list[Any], params: list[Any], slots: list[Slots], scalars: Slots, now: Now
    ) -> tuple[list[Any], list[Slots], Slots]:
        """Run the hooks once: `update` without its checks."""
        optimizer = self.optimizer
        variables = optimizer.hook_variables(paths)
        kept = scalars.get(INNER, {})
        inner = {path: state._replace(slots=unpacked(state.slots)) for path, state in kept.items()}
        scalars = {name: x for name, x in scalars.items() if name != INNER}
        values: dict[Place, Any] = {("count",): now.t.astype(jnp.int32) - 1}
        values |= {("hyperparams", name): getattr(x, "value", x) for name, x in now.hyper.items()}
        values |= {("scalars", name): x for name, x in scalars.items()}
        values |= {("slots", k, name): x for k, s in zip(paths, slots, strict=True) for name, x in s.items()}
        views = {optimizer.view(place): x for place, x in values.items()}
        for path, state in inner.items():
            other = optimizer._nested[path]
            views |= {other.view(place): read(state, place) for place in places(state)}
        scope = Scope([*variables, *views], [*params, *views.values()])
        with optimizer.hooks_running(scope, now, scalars, inner), explained(optimizer):
            given = {k: (g, v) for k, g, v in zip(paths, grads, variables, strict=True) if g is not None}
            # In the order of registration: a tree of parameters is sorted.
            pairs = [given[path] for path in sorted(given, key=optimizer._paths.index)]
            optimizer.run_step([g for g, _ in pairs], [v for _, v in pairs])
        self._finish_unmapped(scope)
        assigned = [x.place for x in scope.written.values() if isinstance(x, View) and x.optimizer is optimizer]
        if names := [place[-1] for place in assigned if place[0] in ("count", "hyperparams")]:
            raise HookError(
                f"A hook of {type(optimizer).__name__} assigns `{names[0]}`, which is set for the whole step. Assign "
                "it between steps; a rate that changes is a schedule, or a variable of `add_variable`."
            )
        new = lambda place, of=optimizer: scope.values[id(of.view(place))]
        amounts = [
            None if g is None and id(v) not in scope.written else scope.values[id(v)] - p
            for g, v, p in zip(grads, variables, params, strict=True)
        ]
        slots = [{name: new(("slots", k, name)) for name in s} for k, s in zip(paths, slots, strict=True)]
        later = {name: new(("scalars", name)) for name in scalars}
        if inner:
            others = {path: (optimizer._nested[path], state) for path, state in inner.items()}
            after = {
                path: with_values(state, [(place, new(place, other)) for place in places(state)])
                for path, (other, state) in others.items()
            }
            later[INNER] = {path: s._replace(slots=packed_like(kept[path].slots, s.slots)) for path, s in after.items()}
        return amounts, slots, later

    def _finish_unmapped(self, scope: Scope) -> None:
        """Store what uncompiled hooks assigned to variables of others. Compiled ones may not use such variables."""
        if not scope.unmapped:
            return
        if not self.optimizer.jit_compile:
            for key in scope.unmapped.keys() & scope.written.keys():
                scope.unmapped[key].assign(scope.values[key])
            return
        names = [v.path for v in scope.unmapped.values()]
        raise ValueError(
            f"A hook of {type(self.optimizer).__name__} uses variables that the optimizer does not have: {names}. "
            "Create them with `add_variable`, `add_variable_from_reference` or `add_slot`, or keep them in attributes."
        )


def places(state: State) -> list[Place]:
    """Return the places of all arrays of a state."""
    scalars = [("scalars", name) for name in state.scalars]
    slots = [("slots", path, name) for name, tree in state.slots.items() for path in tree]
    return [("count",), *(("hyperparams", name) for name in state.hyperparams), *scalars, *slots]
