"""An optimizer's state in lists: `variables` as Keras 3 has them, `weights` and `get_weights` as tf.keras had."""

import warnings
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxopt_keras.stateful.state_views import (
    Place,
    View,
    assembled,
    at_home,
    keras_order,
    legacy_order,
    read,
    slot_groups,
)
from jaxopt_keras.stateful.variable import as_array, several
from jaxopt_keras.storage.masters import MASTER


class Variables(list):
    """A list that may also be called, as in TF 2.11: `optimizer.variables` and `optimizer.variables()`."""

    def __call__(self) -> "Variables":
        return self


class Weights:
    """The lists, for `Optimizer`."""

    name: str
    _state: Any
    _state_for: Callable[[Place], Any]
    _rule: Any
    _rate_source: Any
    _paths: list[str]
    _own: list[str]

    def view(self, place: Place) -> View:
        raise NotImplementedError

    def places(self) -> list[Place]:
        """Where the `variables` stand in the state."""
        groups = slot_groups(self._state, self._rule, self._own)
        return keras_order(self._state, self._paths, groups, self._own, scheduled=self._rate_source is not None)

    @property
    def variables(self) -> Variables:
        """iteration, learning_rate (unless scheduled), then the slots, in the order of Keras 3."""
        return Variables(self.view(place) for place in self.places())

    def _legacy_places(self) -> list[Place]:
        groups = slot_groups(self._state, self._rule, self._own)
        interleaved = getattr(self._rule, "legacy_interleaved", False)
        return legacy_order(self._state, self._paths, groups, self._own, interleaved)

    @property
    def weights(self) -> Variables:
        """iterations, then the slots: what `get_weights` returns, as assignable variables."""
        return Variables(self.view(place) for place in self._legacy_places())

    def get_weights(self) -> list[np.ndarray]:
        """`[iterations, slots...]` in the order of tf.keras, slot name by slot name, without the learning rate."""
        return [np.array(self._read(place)) for place in self._legacy_places()]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Takes what `get_weights` gives.

        Raises:
            ValueError: if the optimizer is not built, or a count, a shape or a kind of number does not fit; nothing has
            changed then.
        """
        if not self._paths:
            raise ValueError("`set_weights` needs a built optimizer. Call `build(variables)` first.")
        weights = [np.array(w) for w in several("weights", weights)]
        places = _that_many(self._legacy_places(), len(weights))
        if len(weights) != len(places):
            names = [self.view(place).name for place in places]
            raise ValueError(
                f"`weights` must have {len(places)} elements: {names}. Received: {len(weights)}. (The list has no "
                "learning rate: `variables` has.)"
            )
        self._store_all(places, weights)

    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Writes `variables` into a mapping, under "0", "1", ..., as Keras's `.weights.h5` has them."""
        if not hasattr(store, "__setitem__"):
            raise TypeError(f"`store` must be a mapping. Received: store={store!r}")
        for i, place in enumerate(self.places()):
            store[str(i)] = np.array(self._read(place))

    def load_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Reads what `save_own_variables` wrote. A store of another length is refused with a warning, as in Keras."""
        if not hasattr(store, "keys"):
            raise TypeError(f"`store` must be a mapping. Received: store={store!r}")
        places = _that_many(self.places(), len(store.keys()))
        if len(store.keys()) != len(places):
            warnings.warn(
                f"Skipping the variables of optimizer {self.name!r}: it has {len(places)}, and the store has "
                f"{len(store.keys())}. Build it first, with the same settings.",
                stacklevel=2,
            )
            return
        self._store_all(places, [np.array(store[str(i)]) for i in range(len(places))])

    def _assembled(self, places: list[Place], values: list[Any]) -> Any:
        """The state with `values` at `places`, in the dtypes that it has."""
        arrays = [as_array(v, "optimizer_variables") for v in values]
        cast = [at_home(v.astype(self._read(p).dtype), self._read(p)) for p, v in zip(places, arrays, strict=True)]
        return assembled(self._state, places, cast)

    def _store_all(self, places: list[Place], values: list[np.ndarray]) -> None:
        """Puts `values`, which nobody else holds, at `places`, if every one fits."""
        for place, value in zip(places, values, strict=True):
            have, name = self._read(place), self.view(place).name
            if value.shape != have.shape:
                raise ValueError(f"The weight `{name}` must have shape {have.shape}. Received: shape {value.shape}")
            if _kind(value.dtype) > _kind(have.dtype):
                raise ValueError(f"The weight `{name}` must be of dtype {have.dtype}. Received: dtype {value.dtype}")
        self._put(self._assembled(places, values))

    def _put(self, state: Any) -> None:
        object.__setattr__(self, "_kept", state)

    def _read(self, place: Place) -> Any:
        return read(self._state_for(place), place)

    def _listed(self, state: Any, places: list[Place]) -> list[Any]:
        return [read(state, place) for place in places]


def _that_many(places: list[Place], count: int) -> list[Place]:
    """`places`; without masters, if that makes `count`: other libraries have none, and parameters stand for theirs."""
    bare = [place for place in places if not _is_master(place)]
    return bare if len(bare) == count else places


def _is_master(place: Place) -> bool:
    while isinstance(place[0], int):  # in an inner optimizer
        place = place[1]
    return place[0] == "slots" and place[2] == MASTER


def _kind(dtype: Any) -> int:
    """Rank of a kind of number: what ranks higher does not fit into what ranks lower."""
    for rank, kind in enumerate((jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)):
        if jnp.issubdtype(dtype, kind):
            return rank
    return 9
