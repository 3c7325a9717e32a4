"""Optimizers among the attributes of a user's class: lookahead, SAM and others that hand steps on to another optimizer.

Hooks may call the inner optimizer's `update_step`, `apply` or `apply_gradients`. So its state is an argument of the
step: it is one of the scalars of the outer state while that is passed around, and is stored in the inner optimizer.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from jaxopt_keras.engine.state import State
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

    def _with_inner(self, state: State) -> State:
        """Return the state with those of the inner optimizers."""
        if not self._nested:
            return state
        parts = {path: _with_rate(x, x._state) for path, x in self._nested.items()}
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
        parts = {path: _with_rate(x, x._state_with(views, values)) for path, x in self._nested.items()}
        return state._replace(scalars=state.scalars | {INNER: parts}) if parts else state


def _found(optimizer: Any) -> Iterator[tuple[str, Any]]:
    """Yield all that is reachable from the attributes of an optimizer and of its inner optimizers."""
    for path, x in walk(optimizer):
        if x is not optimizer:
            yield path, x
            if isinstance(x, Inner):
                yield from ((f"{path}.{inside}", y) for inside, y in _found(x) if isinstance(y, Inner))


def _with_rate(optimizer: Any, state: State) -> State:
    """Return the state with the hyperparameters of the next step."""
    return state._replace(hyperparams=optimizer._hyper(state))


def _without_inner(state: State) -> State:
    if INNER not in state.scalars:
        return state
    return state._replace(scalars={name: x for name, x in state.scalars.items() if name != INNER})
