"""An optimizer's state as lists: Keras 3's `variables`; tf.keras's `weights`, `get_weights` and `set_weights`."""

import warnings
from collections.abc import MutableMapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxopt_keras.language.rule import KerasOrder
from jaxopt_keras.stateful.lock import locked
from jaxopt_keras.stateful.state_views import (
    Place,
    device_put_like,
    keras_order,
    legacy_order,
    read,
    slot_groups,
    with_values,
)
from jaxopt_keras.stateful.transactions import Transactions
from jaxopt_keras.stateful.variable import as_array, check_iterable
from jaxopt_keras.storage.masters import MASTER


class Variables(list):
    """A list that can also be called: TF 2.11 has `optimizer.variables()`, Keras 3 `optimizer.variables`."""

    def __call__(self) -> "Variables":
        return self


class Weights(Transactions):
    """State of an optimizer as lists of variables and of NumPy arrays."""

    def places(self) -> list[Place]:
        """Return the addresses in the state of all `variables`."""
        groups = slot_groups(self._state, self._rule, self._custom_names)
        return keras_order(
            self._state, self._paths, groups, self._custom_names, scheduled=self._rate_source is not None
        )

    @property
    def variables(self) -> Variables:
        """State as assignable variables in Keras 3's order: iteration, learning_rate (unless scheduled), slots."""
        return Variables(self.view(place) for place in self.places())

    def _legacy_places(self) -> list[Place]:
        groups = slot_groups(self._state, self._rule, self._custom_names)
        interleaved = getattr(self._rule, "keras", KerasOrder()).legacy_interleaved
        return legacy_order(self._state, self._paths, groups, self._custom_names, interleaved)

    @property
    def weights(self) -> Variables:
        """State as assignable variables in the order of `get_weights`: iterations, then the slots."""
        return Variables(self.view(place) for place in self._legacy_places())

    @locked
    def get_weights(self) -> list[np.ndarray]:
        """Return `[iterations, slots...]` in tf.keras's order: slot name by slot name, without the learning rate."""
        return [np.array(self._read(place)) for place in self._legacy_places()]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set the state to a list from `get_weights`.

        Raises:
            ValueError: if the optimizer is not built; if the list has another length, or an array another shape or a
                kind of number that does not fit. Nothing is changed then.
        """
        if not self._paths:
            raise ValueError("`set_weights` needs a built optimizer. Call `build(variables)` first.")
        weights = [np.array(w) for w in check_iterable("weights", weights)]
        places = self._of_length(self._legacy_places(), len(weights))
        if len(weights) != len(places):
            names = [self.view(place).name for place in places]
            raise ValueError(
                f"`weights` must have {len(places)} elements: {names}. Received: {len(weights)}. (The learning "
                "rate is not in this list; it is in `variables`.)"
            )
        self._store_all(places, weights)

    @locked
    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Write the values of `variables` into a mapping, under "0", "1", ..., as in Keras's `.weights.h5`."""
        if not hasattr(store, "__setitem__"):
            raise TypeError(f"`store` must be a mapping. Received: store={store!r}")
        for i, place in enumerate(self.places()):
            store[str(i)] = np.array(self._read(place))

    def load_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Read what `save_own_variables` wrote. A store of another length is skipped with a warning, as in Keras."""
        if not hasattr(store, "keys"):
            raise TypeError(f"`store` must be a mapping. Received: store={store!r}")
        places = self._of_length(self.places(), len(store.keys()))
        if len(store.keys()) != len(places):
            warnings.warn(
                f"Skipping the variables of optimizer {self.name!r}: it has {len(places)}, and the store has "
                f"{len(store.keys())}. Build it first, with the same settings.",
                stacklevel=2,
            )
            return
        self._store_all(places, [np.array(store[str(i)]) for i in range(len(places))])

    def _of_length(self, places: list[Place], count: int) -> list[Place]:
        """Return `places`; without those of master weights, which other libraries lack, if that gives `count`."""
        plain = [place for place in places if self.view(place).place[2:] != (MASTER,)]
        return plain if len(plain) == count else places

    def _state_with(self, places: list[Place], values: list[Any]) -> Any:
        """Return the state with `values` at `places`, cast to the present dtypes."""
        arrays = [as_array(v, "optimizer_variables") for v in values]
        present = [self._read(place) for place in places]
        cast = [device_put_like(x.astype(y.dtype), y) for x, y in zip(arrays, present, strict=True)]
        return with_values(self._state, places, cast)

    @locked
    def _store_all(self, places: list[Place], values: list[np.ndarray]) -> None:
        """Check that `values` fit, and set them at `places`. The caller must not use the arrays afterwards."""
        for place, value in zip(places, values, strict=True):
            have, name = self._read(place), self.view(place).name
            if value.shape != have.shape:
                raise ValueError(f"The weight `{name}` must have shape {have.shape}. Received: shape {value.shape}")
            if _number_rank(value.dtype) > _number_rank(have.dtype):
                raise ValueError(f"The weight `{name}` must be of dtype {have.dtype}. Received: dtype {value.dtype}")
        self._put(self._state_with(places, values))

    def _read(self, place: Place) -> Any:
        return self.view(place)._raw_value()

    def _values_at(self, state: Any, places: list[Place]) -> list[Any]:
        return [read(state, place) for place in places]


def _number_rank(dtype: Any) -> int:
    """Return the rank of a dtype's kind of number. A number does not fit into a dtype of lower rank."""
    for rank, kind in enumerate((jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)):
        if jnp.issubdtype(dtype, kind):
            return rank
    return 9
