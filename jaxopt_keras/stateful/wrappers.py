"""Optimizers made of optimizers: what they have in common. Each keeps its own state; a step is one compiled call.

A wrapper's place in the state (`views.Place`) is one of its own, or (the number of an inner optimizer, its place).
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
from jaxopt_keras.stateful.copies import rebound, unique
from jaxopt_keras.stateful.optimizer import Call, Optimizer
from jaxopt_keras.stateful.state_views import RATE, STEP, Place, View, read
from jaxopt_keras.stateful.variable import several
from jaxopt_keras.stateful.variable_kinds import handle

INNER = "Set it on the inner optimizer."


class Wrapper(Optimizer):
    """The means of `LossScaleOptimizer` and `MultiOptimizer`."""

    _listed_scalars: ClassVar[tuple[str, ...]] = ()  # its own, in Keras's order
    _inner: list[Optimizer]
    _owners: dict[str, int]

    def _wrap(self, options: Options, inner: list[Optimizer], scalars: dict[str, Any], **own: Any) -> None:
        """Sets every attribute to what it is before the first variable."""
        state = State(jnp.zeros((), jnp.int32), {"learning_rate": jnp.zeros((), jnp.float32)}, scalars, {})
        # _owners: path -> the number of its inner optimizer; _joined: of `_found`
        self._begin(options, type(self).__name__, _inner=inner, _kept=state, _owners={}, _joined={}, **own)

    # --- to be said by each wrapper ---------------------------------------------------------------------------------

    def _owner_of(self, path: str, variable: Any) -> int:
        """The number of the inner optimizer that takes a new variable."""
        raise NotImplementedError

    def _combined(self, calls: dict[int, Call]) -> Any:
        """The program of a step that takes in those of the inner optimizers' calls."""
        raise NotImplementedError

    def _moving(self, own: Any, calls: dict[int, Call]) -> Any:
        """The state that it moves."""
        raise NotImplementedError

    def _apart(self, call: Call, own: Any, moved: Any) -> tuple[Any, list[Any]]:
        """The wrapper's own state, and what moved of those that `call.inner` has, out of what a step returned."""
        raise NotImplementedError

    # --- one step ---------------------------------------------------------------------------------------------------

    def _gathered(self, given: dict[str, Any], state: Any = None, params: Any = None) -> Call:
        own, inner = (self._state, [None] * len(self._inner)) if state is None else state
        grads, arrays = self._split(given), None if params is None else self._split(params)
        calls = {i: self._inner[i]._gathered(grads[i], inner[i], None if arrays is None else arrays[i]) for i in grads}
        program, compiled = self._found(calls)
        lists = [[getattr(call, name) for call in calls.values()] for name in ("params", "grads", "hyper")]
        return Call(program, compiled, lists[0], self._moving(own, calls), *lists[1:], inner=calls)

    def _found(self, calls: dict[int, Call]) -> tuple[Any, Compiled]:
        """The program of these calls, found again by the identity of theirs, since programs are slow to compare."""
        key = tuple((i, id(call.program)) for i, call in calls.items())
        if key not in self._joined:
            if len(self._joined) > 32:  # settings have changed again and again
                self._joined.clear()
            program = self._combined(calls)
            self._joined[key] = program, shared(program), [call.program for call in calls.values()]  # ids stay theirs
        return self._joined[key][:2]

    _joined: dict[Any, Any]

    def _split(self, by_path: dict[str, Any]) -> dict[int, dict[str, Any]]:
        """What is known of the variables, for each inner optimizer that has some of them, by its own paths."""
        parts: dict[int, dict[str, Any]] = {}
        for path, x in by_path.items():
            parts.setdefault(self._owners[path], {})[self._key_inside(path)] = x
        return dict(sorted(parts.items()))

    def _moved(self, call: Call, state: Any, moved: Any) -> Any:
        own, inner = state
        own, states = self._apart(call, own, moved)
        inner = list(inner)
        for (i, part), new in zip(call.inner.items(), states, strict=True):
            inner[i] = self._inner[i]._moved(part, inner[i], new)
        return own, inner

    def _landed(self, call: Call, params: Any, moved: Any) -> None:
        own, states = self._apart(call, self._state, moved)
        self._set_state(own)
        for (i, part), p, new in zip(call.inner.items(), params, states, strict=True):
            self._inner[i]._landed(part, p, new)

    def _by_path(self, call: Call, params: Any) -> dict[str, Any]:
        new = {i: self._inner[i]._by_path(part, p) for (i, part), p in zip(call.inner.items(), params, strict=True)}
        return {path: new[owner][self._key_inside(path)] for path, owner in self._owners.items() if owner in new}

    def _key_inside(self, path: str) -> str:
        """What the inner optimizer calls the variable at `path`."""
        return self._inner[self._owners[path]]._keys[id(self._handles[path].variable)]

    # --- variables --------------------------------------------------------------------------------------------------

    def _register(self, variables: list[Any]) -> list[str]:
        new = {id(v): handle(v) for v in variables if id(v) not in self._keys}
        bound = rebound(list(new.values()), self._unbound)
        of: dict[int, list[Any]] = {}
        for h in new.values():
            key = bound.get(id(h.variable)) or unique(h.path, self._paths)
            if self._unbound.pop(key, None) is None:
                self._paths.append(key)
                self._owners[key] = self._owner_of(h.path, h.variable)
            self._handles[key], self._keys[id(h.variable)] = h, key
            of.setdefault(self._owners[key], []).append(h.variable)
        for owner, own in of.items():
            self._inner[owner]._ensure(own)
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
        """Sets variables to their averages, where their optimizer keeps some."""
        for v in several("var_list", var_list):
            self._inner_of(v).finalize_variable_values([v])

    def add_slot(self, var: Any, slot_name: str, initializer: Any = "zeros", shape: Any = None) -> View:
        """A slot of the optimizer that has `var`."""
        self._ensure([var])
        return self._inner_of(var).add_slot(var, slot_name, initializer, shape)

    def get_slot(self, var: Any, slot_name: str) -> View:
        """A slot of the optimizer that has `var`."""
        return self._inner_of(var).get_slot(var, slot_name)

    def get_slot_names(self) -> list[str]:
        """The names of all inner optimizers' slots."""
        return [*dict.fromkeys(name for o in self._inner for name in o.get_slot_names())]

    # --- lists of state ---------------------------------------------------------------------------------------------

    def _own_places(self) -> tuple[list[Place], list[Place]]:
        """The wrapper's own, before the inner ones and after them."""
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

    def _assembled(self, places: list[Place], values: list[Any]) -> tuple[Any, list[Any]]:
        of: dict[Any, list[tuple[Place, Any]]] = {None: []} | {i: [] for i in range(len(self._inner))}
        for place, value in zip(places, values, strict=True):
            inner = isinstance(place[0], int)
            of[place[0] if inner else None].append((place[1] if inner else place, value))
        lists = {i: tuple(map(list, zip(*pairs, strict=True))) for i, pairs in of.items()}
        own = super()._assembled(*lists.pop(None))
        return own, [self._inner[i]._assembled(*x) for i, x in lists.items()]

    def _put(self, state: tuple[Any, list[Any]]) -> None:
        own, inner = state
        super()._put(own)
        for optimizer, its in zip(self._inner, inner, strict=True):
            optimizer._put(its)

    def _listed(self, state: Any, places: list[Place]) -> list[Any]:
        own, inner = state
        return [
            self._inner[p[0]]._listed(inner[p[0]], [p[1]])[0] if isinstance(p[0], int) else read(own, p) for p in places
        ]

    @property
    def state(self) -> Any:
        """A copy of the wrapper's own state, and of the inner ones."""
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
        """The number of calls that a guard left out, here or inside."""
        return int(self._state.scalars.get(SKIPPED, 0)) + sum(int(o.skipped) for o in self._inner)

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        raise AttributeError(f"{type(self).__name__} has no weight decay of its own. {INNER}")

    def _configure(self, rule: Any, options: Options) -> None:
        raise AttributeError(f"{type(self).__name__} has no options of its own. {INNER}")

    def __copy__(self) -> Self:
        twin = object.__new__(type(self))
        variables = {id(h.variable): h.variable for h in self._handles.values()}
        inner = {id(o): copy.copy(o) for o in self._inner}
        twin.__setstate__(copy.deepcopy(self.__getstate__(), {id(self): twin} | variables | inner))
        twin.__dict__.update(_handles=dict(self._handles), _unbound=dict(self._unbound))
        twin.__dict__["_keys"].update({id(h.variable): key for key, h in self._handles.items()})
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_joined": {}}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} name={self.name!r} of {self._inner}>"
