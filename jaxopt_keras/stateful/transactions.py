"""The state of an optimizer, and changes to an optimizer that are undone where they fail."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from jaxopt_keras.engine.state import State
from jaxopt_keras.packing.slots import unpack_slots_eagerly
from jaxopt_keras.packing.trees import Packed
from jaxopt_keras.stateful.state_views import Place, without_masked


class Transactions:
    """The means of changing the state, for `Optimizer`."""

    _kept: State  # with packed slots after a step, where that is faster
    _in_hooks: bool

    @property
    def _state(self) -> State:
        """The state in the pure layout. Packed slots are unpacked for it, and packed again by the next step."""
        kept = self._kept
        if isinstance(kept.slots, Packed):
            kept = kept._replace(slots=without_masked(unpack_slots_eagerly(kept.slots)))
            object.__setattr__(self, "_kept", kept)
        return kept

    def _state_for(self, place: Place) -> State:
        """The state to read `place` from: what is no slot can be read without unpacking."""
        return self._state if place[0] == "slots" else self._kept

    def _set_state(self, state: State) -> None:
        self._check_outside_hooks()
        object.__setattr__(self, "_kept", state)

    def _check_outside_hooks(self) -> None:
        if self._in_hooks:
            raise ValueError(
                f"A hook of {type(self).__name__} makes a slot, a variable or a hyperparameter: it would exist in that "
                "step only. Make it in `__init__`, `build` or `_create_slots`."
            )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[dict[str, Any]]:
        """Undoes what was done inside, where that raises. Gives what `_restore` takes, to undo it later."""
        before = self._snapshot()
        try:
            yield before
        except BaseException:
            self._restore(before)
            raise

    def _snapshot(self) -> dict[str, Any]:
        """What `_restore` takes: all attributes, and what lists and dicts among them hold."""
        return {n: copy.copy(x) if type(x) in (dict, list, set) else x for n, x in self.__dict__.items()}

    def _restore(self, snapshot: dict[str, Any] | None) -> None:
        if snapshot is not None:
            self.__dict__.clear()
            self.__dict__.update(snapshot)
