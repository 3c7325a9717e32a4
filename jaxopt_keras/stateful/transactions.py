"""The state of an optimizer, and changes to an optimizer that are undone if they fail."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from jaxopt_keras.engine.state import State
from jaxopt_keras.packing.slots import unpack_slots_eagerly
from jaxopt_keras.packing.trees import Packed
from jaxopt_keras.stateful.attributes import Attributes
from jaxopt_keras.stateful.lock import locked
from jaxopt_keras.stateful.state_views import Place, without_masked


class Transactions(Attributes):
    """State of an optimizer: reading and replacing it, and undoing failed changes."""

    _kept: State  # after a step its slots are packed, if that is faster
    _in_hooks: bool

    @property
    @locked
    def _state(self) -> State:
        """State with unpacked slots. Packed slots are unpacked and kept so; the next step packs them again."""
        kept = self._kept
        if isinstance(kept.slots, Packed):
            kept = kept._replace(slots=without_masked(unpack_slots_eagerly(kept.slots)))
            object.__setattr__(self, "_kept", kept)
        return kept

    def _state_for(self, place: Place) -> State:
        """Return the state to read `place` from. All but slots can be read without unpacking."""
        return self._state if place[0] == "slots" else self._kept

    def _set_state(self, state: State) -> None:
        self._check_outside_hooks()
        self._put(state)

    def _put(self, state: State) -> None:
        """Replace the state."""
        object.__setattr__(self, "_kept", state)

    def _check_outside_hooks(self) -> None:
        if self._in_hooks:
            raise ValueError(
                f"A hook of {type(self).__name__} creates a slot, a variable or a hyperparameter, which would exist in "
                "that step only. Create it in `__init__`, `build` or `_create_slots`."
            )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[dict[str, Any]]:
        """Undo all changes to the optimizer if the block raises. Yields a snapshot for `_restore`."""
        before = self._snapshot()
        try:
            yield before
        except BaseException:
            self._restore(before)
            raise

    def _snapshot(self) -> dict[str, Any]:
        """Return all attributes, with copies of the lists, dicts and sets among them."""
        return {n: copy.copy(x) if type(x) in (dict, list, set) else x for n, x in self.__dict__.items()}

    def _restore(self, snapshot: dict[str, Any] | None) -> None:
        """Set all attributes back to a snapshot; None: change nothing."""
        if snapshot is not None:
            self.__dict__.clear()
            self.__dict__.update(snapshot)
