"""The base of optimizers around other optimizers.

A wrapper is an optimizer like any other: it has one kernel, one state and one registry of variables. Its kernel runs
the kernels of its groups, and a step is one compiled call. Its state consists of a few numbers of its own and, as
`slots`, of the states of its groups; `state` converts that to the layout of the pure face. An inner optimizer is a
group: its state is that element of the wrapper's state, which both read and set. It can also be used alone.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp

from jaxopt_keras.engine.plan import Plan, joined
from jaxopt_keras.engine.stages.guard import SKIPPED, of_groups
from jaxopt_keras.engine.state import State
from jaxopt_keras.engine.unused_patterns import Unused
from jaxopt_keras.language.options import Options
from jaxopt_keras.language.printing import call
from jaxopt_keras.pure.kernel import Kernel
from jaxopt_keras.stateful.call import Call
from jaxopt_keras.stateful.custom.overrides import HOOKS, in_library, refuse_overrides
from jaxopt_keras.stateful.lock import in_full, locked
from jaxopt_keras.stateful.optimizer import Optimizer
from jaxopt_keras.stateful.state_views import RATE, STEP, Place, View
from jaxopt_keras.stateful.variable import check_iterable
from jaxopt_keras.stateful.variable_kinds import Handle

INNER = "Set it on the inner optimizer."


class Wrapper(Optimizer):
    """An optimizer around other optimizers: the base of `LossScaleOptimizer` and `MultiOptimizer`."""

    _listed_scalars: ClassVar[tuple[str, ...]] = ()  # the wrapper's own, in Keras's order
    _inner: list[Optimizer]
    _owners: dict[str, tuple[int, str]]  # path -> the number of its inner optimizer, and its path there

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not in_library(cls):
            refuse_overrides(cls, dict.fromkeys(HOOKS, "derive the class of an inner optimizer"))

    def _wrap(self, options: Options, inner: list[Optimizer], **own: Any) -> None:
        """Set all attributes to their values before the first variable."""
        self._init_attributes(options, type(self).__name__, _inner=inner, _owners={}, **own)
        object.__setattr__(self, "_kept", self._first_state())

    def _first_state(self) -> State:
        """Return the wrapper's own numbers before the first step. Its count and rate are those that Keras lists."""
        return State(jnp.zeros((), jnp.int32), {"learning_rate": jnp.zeros((), jnp.float32)}, self._first_scalars(), {})

    # --- implemented by each wrapper --------------------------------------------------------------------------------

    def _first_scalars(self) -> dict[str, Any]:
        return {}

    def _choose_group(self, path: str, variable: Any) -> int:
        """Return the number of the inner optimizer of a new variable: the first, unless a wrapper has several."""
        return 0

    def _plan(self, handles: list[Handle]) -> Plan:
        by_group: dict[int, list[Handle]] = {}
        for h in handles:
            by_group.setdefault(self._choose_group(h.path, h.variable), []).append(h)
        return joined(self._inner[i]._plan(own).in_group(self._title(i)) for i, own in sorted(by_group.items()))

    def _title(self, group: int) -> str:
        """Return what stands before the rules of a group in the plan."""
        return ""

    def _program(self, programs: list[Any], guards: Any) -> Any:
        """Return one program that runs those of the groups; `guards`: their `skip_nonfinite`."""
        raise NotImplementedError

    def _call(self, kernel: Kernel, own: State, calls: dict[int, Call]) -> Call:
        """Return the call of `kernel` that makes the steps of `calls`, from a state with the wrapper's numbers."""
        raise NotImplementedError

    def _split(self, call: Call, own: State, params: Any, result: State) -> tuple[State, list[Any], list[State]]:
        """Return the results of `call`: `own` with new numbers, and the parameters and states of `call.inner`."""
        raise NotImplementedError

    # --- one step ---------------------------------------------------------------------------------------------------

    def _kernel(self) -> Kernel:
        return self._kernel_of({i: optimizer._kernel() for i, optimizer in enumerate(self._inner)})

    def _kernel_of(self, kernels: dict[int, Kernel]) -> Kernel:
        """Return the kernel that runs those of some groups. It is cached, since making and comparing one is slow."""
        key, cached = tuple(kernels.items()), self._kernel_cache or {}
        if key not in cached:
            programs = [kernel.skeleton for kernel in kernels.values()]
            guards = of_groups(kernel.options for kernel in kernels.values())
            kept = cached if len(cached) < 32 else {}  # else settings have changed many times
            cached = kept | {key: Kernel(self._program(programs, guards))}
            object.__setattr__(self, "_kernel_cache", cached)
        return cached[key]

    def _prepare_step(self, given: dict[str, Any], state: Any = None, params: Any = None) -> Call:
        grads = self._by_group(given)
        states = dict.fromkeys(grads) if state is None else state.slots
        arrays = dict.fromkeys(grads) if params is None else self._by_group(params)
        calls = {i: self._inner[i]._prepare_step(grads[i], states[i], arrays[i]) for i in grads}
        kernel = self._kernel_of({i: call.kernel for i, call in calls.items()})
        return self._call(kernel, self._kept if state is None else state, calls)

    def _by_group(self, by_path: dict[str, Any]) -> dict[int, dict[str, Any]]:
        """Split a dict by path into one for each group that has some of the variables, by the paths there."""
        parts: dict[int, dict[str, Any]] = {}
        for path, x in by_path.items():
            i, inside = self._owners[path]
            parts.setdefault(i, {})[inside] = x
        return dict(sorted(parts.items()))

    def _results(self, call: Call, state: State, params: Any, result: State) -> tuple[dict[str, Any], State]:
        own, *parts = self._split(call, state, params, result)
        new, slots = {}, [*state.slots]
        for i, p, r in zip(call.inner, *parts, strict=True):
            new[i], slots[i] = self._inner[i]._results(call.inner[i], slots[i], p, r)
        by_path = {path: new[i][inside] for path, (i, inside) in self._owners.items() if i in new}
        return by_path, own._replace(slots=slots)

    def _accept_results(self, call: Call, params: Any, result: State) -> None:
        own, *parts = self._split(call, self._kept, params, result)
        object.__setattr__(self, "_kept", own)
        rows = zip(call.inner, *parts, strict=True)
        in_full(lambda row: self._inner[row[0]]._accept_results(call.inner[row[0]], *row[1:]), rows)

    # --- state ------------------------------------------------------------------------------------------------------

    @property
    def _state(self) -> State:
        """State with the states of the groups as `slots`. `_kept` has the wrapper's own numbers only."""
        return self._kept._replace(slots=[optimizer._state for optimizer in self._inner])

    def _put(self, state: State) -> None:
        super()._put(state._replace(slots={}))
        for optimizer, part in zip(self._inner, state.slots, strict=True):
            optimizer._put(part)

    def _snapshot(self) -> dict[str, Any]:
        return {"own": super()._snapshot(), "inner": [(o, o._snapshot()) for o in self._inner]}

    def _restore(self, snapshot: dict[str, Any] | None) -> None:
        if snapshot is not None:
            super()._restore(snapshot["own"])
            for optimizer, before in snapshot["inner"]:
                optimizer._restore(before)

    def _listed(self, legacy: bool = False) -> list[View]:
        scalars: list[Place] = [("scalars", name) for name in self._listed_scalars]
        counter: list[Place] = [("scalars", SKIPPED)] if SKIPPED in self._state.scalars else []
        first = map(self.view, [STEP, *([] if legacy else [RATE]), *scalars])
        return [*first, *(view for o in self._inner for view in o._listed(legacy)), *map(self.view, counter)]

    def _states_of(self, state: State) -> dict[int, State]:
        states = super()._states_of(state)
        for optimizer, part in zip(self._inner, state.slots, strict=True):
            states |= optimizer._states_of(part)
        return states

    def _state_with(self, views: Sequence[View], values: Sequence[Any]) -> State:
        parts = [optimizer._state_with(views, values) for optimizer in self._inner]
        return super()._state_with(views, values)._replace(slots=parts)

    # --- variables --------------------------------------------------------------------------------------------------

    def _register(self, variables: list[Any]) -> list[str]:
        new = self._new_handles(variables)
        fresh = self._bind(new)
        groups: dict[int, list[Any]] = {}
        for h in new:
            path = self._keys[id(h.variable)]
            i = self._choose_group(h.path, h.variable) if path in fresh else self._owners[path][0]
            groups.setdefault(i, []).append(h.variable)
            self._owners[path] = i, path
        for i, owned in groups.items():
            self._inner[i]._ensure(owned)
            self._owners.update({self._keys[id(v)]: (i, self._inner[i]._keys[id(v)]) for v in owned})
        return []

    def _unused(self, handles: dict[str, Handle]) -> list[Unused]:
        return []  # the inner optimizers warn of their own patterns

    def _inner_of(self, variable: Any) -> Optimizer:
        buffer = getattr(variable, "buffer", None)
        known = variable if buffer is None or id(variable) in self._keys else buffer
        return self._inner[self._owners[self._key(known)][0]]

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """Set variables to their averages, if their optimizer keeps averages."""
        for v in check_iterable("var_list", var_list):
            self._inner_of(v).finalize_variable_values([v])

    def add_slot(self, var: Any, slot_name: str, initializer: Any = "zeros", shape: Any = None) -> View:
        """Return a slot of `var` in its inner optimizer; it is created if it does not exist."""
        self._ensure([var])
        return self._inner_of(var).add_slot(var, slot_name, initializer, shape)

    def get_slot(self, var: Any, slot_name: str) -> View:
        """Return a slot of `var` in its inner optimizer."""
        return self._inner_of(var).get_slot(var, slot_name)

    def get_slot_names(self) -> list[str]:
        """Return the names of all inner optimizers' slots."""
        return [*dict.fromkeys(name for o in self._inner for name in o.get_slot_names())]

    # --- settings ---------------------------------------------------------------------------------------------------

    @property
    @locked
    def skipped(self) -> int:
        """Number of calls that guards skipped, the wrapper's and the inner optimizers'."""
        return int(self._kept.scalars.get(SKIPPED, 0)) + sum(int(o.skipped) for o in self._inner)

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        raise AttributeError(f"{type(self).__name__} has no weight decay of its own. {INNER}")

    def _configure(self, rule: Any, options: Options, *changed: str) -> None:
        raise AttributeError(f"{type(self).__name__} has no options of its own. {INNER}")

    def __repr__(self) -> str:
        return call(type(self).__name__, *map(repr, self._inner))
