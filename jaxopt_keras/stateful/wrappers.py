"""The base of optimizers around other optimizers. Each keeps its own state; a step is one compiled call.

An address (`state_views.Place`) in a wrapper's state is one of its own, or (number of an inner optimizer, its address).
"""

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from jaxopt_keras.engine.compiled import Compiled, shared
from jaxopt_keras.engine.stages.guard import SKIPPED
from jaxopt_keras.engine.state import State
from jaxopt_keras.language.options import Options
from jaxopt_keras.stateful.copies import deduplicated, match_unbound
from jaxopt_keras.stateful.optimizer import Call, Optimizer
from jaxopt_keras.stateful.state_views import RATE, STEP, Place, View, read
from jaxopt_keras.stateful.variable import check_iterable
from jaxopt_keras.stateful.variable_kinds import handle

INNER = "Set it on the inner optimizer."


class Wrapper(Optimizer):
    """An optimizer around other optimizers: the base of `LossScaleOptimizer` and `MultiOptimizer`."""

    _listed_scalars: ClassVar[tuple[str, ...]] = ()  # the wrapper's own, in Keras's order
    _inner: list[Optimizer]
    _owners: dict[str, int]

    def _wrap(self, options: Options, inner: list[Optimizer], scalars: dict[str, Any], **own: Any) -> None:
        """Set all attributes to their values before the first variable."""
        state = State(jnp.zeros((), jnp.int32), {"learning_rate": jnp.zeros((), jnp.float32)}, scalars, {})
        # _owners: path -> number of its inner optimizer; _programs: the cache of `_cached_program`
        self._init_attributes(options, type(self).__name__, _inner=inner, _kept=state, _owners={}, _programs={}, **own)

    # --- implemented by each wrapper --------------------------------------------------------------------------------

    def _choose_owner(self, path: str, variable: Any) -> int:
        """Return the number of the inner optimizer of a new variable."""
        raise NotImplementedError

    def _combined_program(self, calls: dict[int, Call]) -> Any:
        """Return one program that runs the programs of the inner optimizers' calls."""
        raise NotImplementedError

    def _step_state(self, own: Any, calls: dict[int, Call]) -> Any:
        """Return the state that this program takes, from the wrapper's own and those of the calls."""
        raise NotImplementedError

    def _split_state(self, call: Call, own: Any, result: Any) -> tuple[Any, list[Any]]:
        """Split the state that the program returned into the wrapper's own and those of the calls `call.inner`."""
        raise NotImplementedError

    # --- one step ---------------------------------------------------------------------------------------------------

    def _prepare_step(self, given: dict[str, Any], state: Any = None, params: Any = None) -> Call:
        own, inner = (self._state, [None] * len(self._inner)) if state is None else state
        grads, arrays = self._by_owner(given), None if params is None else self._by_owner(params)
        calls = {
            i: self._inner[i]._prepare_step(grads[i], inner[i], None if arrays is None else arrays[i]) for i in grads
        }
        program, compiled = self._cached_program(calls)
        lists = [[getattr(call, name) for call in calls.values()] for name in ("params", "grads", "hyper")]
        return Call(program, compiled, lists[0], self._step_state(own, calls), *lists[1:], inner=calls)

    def _cached_program(self, calls: dict[int, Call]) -> tuple[Any, Compiled]:
        """Return the program of the calls, cached by the identity of the calls' programs: comparing them is slow."""
        key = tuple((i, id(call.program)) for i, call in calls.items())
        if key not in self._programs:
            if len(self._programs) > 32:  # settings have changed many times
                self._programs.clear()
            program = self._combined_program(calls)
            kept_alive = [call.program for call in calls.values()]  # so that no other program gets one of these ids
            self._programs[key] = program, shared(program), kept_alive
        return self._programs[key][:2]

    _programs: dict[Any, Any]

    def _by_owner(self, by_path: dict[str, Any]) -> dict[int, dict[str, Any]]:
        """Split a dict by path into one for each inner optimizer that has some of the variables, by its own paths."""
        parts: dict[int, dict[str, Any]] = {}
        for path, x in by_path.items():
            parts.setdefault(self._owners[path], {})[self._key_inside(path)] = x
        return dict(sorted(parts.items()))

    def _state_after(self, call: Call, state: Any, result: Any) -> Any:
        own, inner = state
        own, states = self._split_state(call, own, result)
        inner = list(inner)
        for (i, part), new in zip(call.inner.items(), states, strict=True):
            inner[i] = self._inner[i]._state_after(part, inner[i], new)
        return own, inner

    def _accept_results(self, call: Call, params: Any, result: Any) -> None:
        own, states = self._split_state(call, self._state, result)
        self._set_state(own)
        for (i, part), p, new in zip(call.inner.items(), params, states, strict=True):
            self._inner[i]._accept_results(part, p, new)

    def _params_by_path(self, call: Call, params: Any) -> dict[str, Any]:
        new = {
            i: self._inner[i]._params_by_path(part, p) for (i, part), p in zip(call.inner.items(), params, strict=True)
        }
        return {path: new[owner][self._key_inside(path)] for path, owner in self._owners.items() if owner in new}

    def _key_inside(self, path: str) -> str:
        """Return the path under which the inner optimizer has the variable at `path`."""
        return self._inner[self._owners[path]]._keys[id(self._handles[path].variable)]

    # --- variables --------------------------------------------------------------------------------------------------

    def _register(self, variables: list[Any]) -> list[str]:
        new = {id(v): handle(v) for v in variables if id(v) not in self._keys}
        bound = match_unbound(list(new.values()), self._unbound)
        by_owner: dict[int, list[Any]] = {}
        for h in new.values():
            key = bound.get(id(h.variable)) or deduplicated(h.path, self._paths)
            if self._unbound.pop(key, None) is None:
                self._paths.append(key)
                self._owners[key] = self._choose_owner(h.path, h.variable)
            self._handles[key], self._keys[id(h.variable)] = h, key
            by_owner.setdefault(self._owners[key], []).append(h.variable)
        for owner, owned in by_owner.items():
            self._inner[owner]._ensure(owned)
        return []

    def _snapshot(self) -> dict[str, Any]:
        return {"own": super()._snapshot(), "inner": [(o, o._snapshot()) for o in self._inner]}

    def _restore(self, snapshot: dict[str, Any] | None) -> None:
        if snapshot is not None:
            super()._restore(snapshot["own"])
            for optimizer, before in snapshot["inner"]:
                optimizer._restore(before)

    def _inner_of(self, variable: Any) -> Optimizer:
        return self._inner[self._owners[self._key(variable)]]

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

    # --- lists of state ---------------------------------------------------------------------------------------------

    def _own_places(self) -> tuple[list[Place], list[Place]]:
        """Return the wrapper's own addresses, those before the inner optimizers' and those after them."""
        first: list[Place] = [STEP, RATE, *(("scalars", name) for name in self._listed_scalars)]
        return first, [("scalars", SKIPPED)] if SKIPPED in self._state.scalars else []

    def places(self) -> list[Place]:
        first, last = self._own_places()
        return [*first, *((i, place) for i, o in enumerate(self._inner) for place in o.places()), *last]

    def _legacy_places(self) -> list[Place]:
        first, last = self._own_places()
        inner = ((i, place) for i, o in enumerate(self._inner) for place in o._legacy_places())
        return [*(place for place in first if place != RATE), *inner, *last]

    def view(self, place: Place) -> View:
        return self._inner[place[0]].view(place[1]) if isinstance(place[0], int) else super().view(place)

    def _read(self, place: Place) -> Any:
        return self._inner[place[0]]._read(place[1]) if isinstance(place[0], int) else super()._read(place)

    def _state_with(self, places: list[Place], values: list[Any]) -> tuple[Any, list[Any]]:
        by_owner: dict[Any, list[tuple[Place, Any]]] = {None: []} | {i: [] for i in range(len(self._inner))}
        for place, value in zip(places, values, strict=True):
            is_inner = isinstance(place[0], int)
            by_owner[place[0] if is_inner else None].append((place[1] if is_inner else place, value))
        lists = {i: tuple(map(list, zip(*pairs, strict=True))) for i, pairs in by_owner.items()}
        own = super()._state_with(*lists.pop(None))
        return own, [self._inner[i]._state_with(*x) for i, x in lists.items()]

    def _put(self, state: tuple[Any, list[Any]]) -> None:
        own, inner = state
        super()._put(own)
        for optimizer, inner_state in zip(self._inner, inner, strict=True):
            optimizer._put(inner_state)

    def _values_at(self, state: Any, places: list[Place]) -> list[Any]:
        own, inner = state
        return [
            self._inner[p[0]]._values_at(inner[p[0]], [p[1]])[0] if isinstance(p[0], int) else read(own, p)
            for p in places
        ]

    @property
    def state(self) -> Any:
        """Copies of the wrapper's own state and of the inner optimizers' states."""
        return jax.tree.map(jnp.copy, self._state), [o.state for o in self._inner]

    @state.setter
    def state(self, state: Any) -> None:
        own, inner = state
        for optimizer, value in zip(self._inner, inner, strict=True):
            optimizer.state = value
        self._set_state(jax.tree.map(jnp.copy, own))

    # --- settings ---------------------------------------------------------------------------------------------------

    @property
    def skipped(self) -> int:
        """Number of calls that guards skipped, the wrapper's and the inner optimizers'."""
        return int(self._state.scalars.get(SKIPPED, 0)) + sum(int(o.skipped) for o in self._inner)

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        raise AttributeError(f"{type(self).__name__} has no weight decay of its own. {INNER}")

    def _configure(self, rule: Any, options: Options) -> None:
        raise AttributeError(f"{type(self).__name__} has no options of its own. {INNER}")

    def __copy__(self) -> Self:
        new = object.__new__(type(self))
        variables = {id(h.variable): h.variable for h in self._handles.values()}
        inner = {id(o): copy.copy(o) for o in self._inner}
        new.__setstate__(copy.deepcopy(self.__getstate__(), {id(self): new} | variables | inner))
        new.__dict__.update(_handles=dict(self._handles), _unbound=dict(self._unbound))
        new.__dict__["_keys"].update({id(h.variable): key for key, h in self._handles.items()})
        return new

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_programs": {}}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} name={self.name!r} of {self._inner}>"
