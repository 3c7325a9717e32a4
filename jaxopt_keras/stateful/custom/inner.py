"""Optimizers among the attributes of a user's class: lookahead, SAM and others that hand steps on to another optimizer.

Hooks may call the inner optimizer's `update_step`, `apply` or `apply_gradients`. So its state is an argument of the
step: it is one of the scalars of the outer state while that is passed around, and is stored in the inner optimizer. The
optimizers inside of inner ones are listed beside them, so that no part of a state contains another.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from jaxopt_keras.engine.slot_packing import LOOSE
from jaxopt_keras.engine.state import State
from jaxopt_keras.packing.slots import pack_slots
from jaxopt_keras.packing.trees import Packed
from jaxopt_keras.stateful.custom.adoption import adopt, is_adoptable
from jaxopt_keras.stateful.custom.attributes import walk
from jaxopt_keras.stateful.custom.hooks import INNER
from jaxopt_keras.stateful.state_views import View
from jaxopt_keras.stateful.weight_lists import Weights


class Inner(Weights):
    """The state of an optimizer together with those of its inner optimizers."""

    _nested: dict[str, Any]  # path of the attribute -> inner optimizer, also of inner optimizers

    def _find_attributes(self, new: bool = False) -> None:
        """Find inner optimizers, build them if they are not, and adopt the variables among the attributes.

        Args:
            new: whether variables have been registered.
        """
        if not self._has_hooks():
            return
        nested: dict[str, Any] = {}
        for path, x in _found(self):
            if isinstance(x, Inner):
                nested[path] = x
            elif is_adoptable(x) and id(x) not in self._keys and self._paths:
                adopt(self, x, path)
        self.__dict__["_nested"] = nested
        for x in nested.values():
            if new and not x._paths:
                x.build(self.hook_variables(self._paths))
            elif x._unbound and not self._unbound:  # of a copy
                x._ensure(self.hook_variables(self._paths))

    def _with_inner(self, state: State, packed: bool = False) -> State:
        """Return the state with those of the inner optimizers; `packed`: with their slots packed."""
        if not self._nested:
            return state
        kept = {path: x._kept if packed else x._own_state() for path, x in self._nested.items()}
        if packed:
            kept = {path: s._replace(slots=_packed(s.slots)) for path, s in kept.items()}
        parts = {path: _with_rate(self._nested[path], s) for path, s in kept.items()}
        return state._replace(scalars=state.scalars | {INNER: parts})

    def _put(self, state: State) -> None:
        for path, part in state.scalars.get(INNER, {}).items():
            x = self._nested[path]
            x._put(part if x._rate_source is None else part._replace(hyperparams=x._kept.hyperparams))
        super()._put(_without_inner(state))

    def _listed(self, legacy: bool = False) -> list[View]:
        if self._kernel_cache is None:
            self._find_attributes()
        own = [view for view in super()._listed(legacy) if view.place[:2] != ("scalars", INNER)]
        return [*own, *(view for x in self._nested.values() for view in x._listed(legacy) if view.optimizer is x)]

    def _states_of(self, state: State) -> dict[int, State]:
        states = super()._states_of(state)
        for path, part in state.scalars.get(INNER, {}).items():
            states |= self._nested[path]._states_of(part)
        return states

    def _state_with(self, views: Sequence[View], values: Sequence[Any]) -> State:
        state = super()._state_with(views, values)
        parts = {path: _without_inner(x._state_with(views, values)) for path, x in self._nested.items()}
        parts = {path: _with_rate(self._nested[path], part) for path, part in parts.items()}
        return state._replace(scalars=state.scalars | {INNER: parts}) if parts else state


def _found(optimizer: Any, around: tuple[Any, ...] = (), seen: Any = None) -> Iterator[tuple[str, Any]]:
    """Yield all that is reachable from the attributes of an optimizer, and the optimizers inside of inner ones, once.

    Args:
        optimizer: the optimizer.
        around: the optimizers that contain it.
        seen: ids of the optimizers that have been found; None: none.

    Raises:
        ValueError: if an optimizer contains itself.
    """
    around, seen = (*around, optimizer), set[int]() if seen is None else seen
    for path, x in walk(optimizer):
        if x is optimizer or id(x) in seen:
            continue
        if any(x is outer for outer in around):
            raise ValueError(
                f"An inner optimizer may not contain the optimizer around it. Received: `{path}` of "
                f"{type(optimizer).__name__} is {type(x).__name__}, which contains it. Remove that attribute."
            )
        yield path, x
        if isinstance(x, Inner):
            seen.add(id(x))
            yield from ((f"{path}.{inside}", y) for inside, y in _found(x, around, seen) if isinstance(y, Inner))


def _with_rate(optimizer: Any, state: State) -> State:
    """Return the state with the hyperparameters of the next step."""
    return state._replace(hyperparams=optimizer._hyper(state))


def _without_inner(state: State) -> State:
    if INNER not in state.scalars:
        return state
    return state._replace(scalars={name: x for name, x in state.scalars.items() if name != INNER})


def _packed(slots: Any) -> Packed:
    return slots if isinstance(slots, Packed) else pack_slots(slots, LOOSE)
