"""The attributes of an optimizer, its state among them, and changes that are undone if they fail."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from jaxopt_keras.engine.slot_packing import LOOSE
from jaxopt_keras.engine.state import State
from jaxopt_keras.language.options import Options
from jaxopt_keras.language.other_names import METHODS
from jaxopt_keras.language.rule import Rule, fields_of
from jaxopt_keras.packing.parts import Form
from jaxopt_keras.packing.slots import packing, unpacking
from jaxopt_keras.packing.trees import Packed, unpacked
from jaxopt_keras.stateful.lock import locked
from jaxopt_keras.stateful.state_views import Place, masked, without_masked
from jaxopt_keras.stateful.variable import value_of

OPTIONS = fields_of(Options)


class Transactions:
    """Attributes of an optimizer: its own, and by name those of its rule and its options; and undoing failed changes.

    `Registry._init_attributes` sets and explains the optimizer's own.
    """

    def __getattr__(self, name: str) -> Any:
        """Return a hyperparameter of the rule, or an option, by its name."""
        given = getattr(type(self), name, None)
        if isinstance(given, property):  # it raised an AttributeError: raise that one
            return given.__get__(self)
        if "_rule" in self.__dict__:
            if name in self._hypers:
                return self._get_hyper(name)
            if self._in_hooks:
                self._read_names.add(name)
            if name in self._sources:
                value = self._hyper(self._kept)[name]
                return getattr(value, "value", value)  # of a number and its complement
            if isinstance(self._rule, Rule) and name in self._rule.declared():
                return getattr(self._rule, name)
            if name in OPTIONS:
                return getattr(self._options, name)
        hint = f". {METHODS[name]}" if name in METHODS else ""
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}")

    @locked
    def __setattr__(self, name: str, value: Any) -> None:
        if "_rule" not in self.__dict__:
            raise RuntimeError(
                f"`{type(self).__name__}.__init__` must call `super().__init__()` first. Received: {name}={value!r}"
            )
        if name.startswith("_") and self._is_reserved(name):
            raise AttributeError(
                f"`{name}` is reserved: the library has an attribute of this name. Received: {name}={value!r}. Choose "
                "another name."
            )
        own = hasattr(type(self), name) or name in self.__dict__
        if not own and name in self._hypers:
            self._set_hyper(name, value)
        elif not own and isinstance(self._rule, Rule) and name in self._rule.declared():
            self._configure(self._rule.replaced(**{name: value_of(value)}), self._options, name)
        elif not own and name in OPTIONS:
            self._configure(self._rule, self._options.replaced(**{name: value_of(value)}), name)
        else:
            object.__setattr__(self, name, value)
            if name not in ("name", "built") and not isinstance(getattr(type(self), name, None), property):
                self._invalidate_traces()

    def _is_reserved(self, name: str) -> bool:
        """Whether the library has an attribute or a method of this name, which cannot be assigned."""
        library = [c for c in type(self).__mro__ if c.__module__.startswith("jaxopt_keras.")]
        found = getattr(type(self), name, None)
        declared = name in self._reserved or any(name in vars(c) for c in library)
        return declared and not (isinstance(found, property) and found.fset)

    # --- the state --------------------------------------------------------------------------------------------------

    @property
    @locked
    def _state(self) -> State:
        """State with unpacked slots, and with the states of inner optimizers of a user's class."""
        return self._with_inner(self._own_state())

    def _own_state(self) -> State:
        """Return the state with unpacked slots. They are kept so; the next step packs them again."""
        if isinstance(self._kept.slots, Packed):
            for slots in unpacking(self._kept.slots):
                object.__setattr__(self, "_kept", self._kept._replace(slots=slots))
            kept = self._kept._replace(slots=without_masked(unpacked(self._kept.slots)))
            object.__setattr__(self, "_kept", kept)
        return self._kept

    def _packed_state(self, params: dict[str, Any], form: Form) -> State:
        """Return the state with packed slots of all parameters. They are kept so until one is read."""
        if not isinstance(self._kept.slots, Packed):
            for slots in packing(masked(self._kept.slots, params), LOOSE, form):
                object.__setattr__(self, "_kept", self._kept._replace(slots=slots))
        return self._kept

    def _state_for(self, place: Place) -> State:
        """Return the state to read `place` from. All but slots can be read without unpacking."""
        return self._own_state() if place[0] == "slots" else self._kept

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

    # --- changes that are undone if they fail -----------------------------------------------------------------------

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
