"""An optimizer's state as lists: Keras 3's `variables`; tf.keras's `weights`, `get_weights` and `set_weights`."""

import warnings
from collections.abc import MutableMapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxopt_keras.stateful.lock import locked
from jaxopt_keras.stateful.state_views import RATE, View, device_put_like, ordered, with_values
from jaxopt_keras.stateful.transactions import Transactions
from jaxopt_keras.stateful.variable import as_array, check, check_iterable
from jaxopt_keras.storage.masters import MASTER


class Variables(list):
    """A list that can also be called: TF 2.11 has `optimizer.variables()`, Keras 3 `optimizer.variables`."""

    def __call__(self) -> "Variables":
        return self


class Weights(Transactions):
    """State of an optimizer as lists of variables and of NumPy arrays."""

    def _listed(self, legacy: bool = False) -> list[View]:
        """Return views of the state in Keras 3's order or, if `legacy`, in tf.keras's."""
        places = ordered(self._state, self._paths, self._rule, self._custom_names, legacy)
        return [self.view(place) for place in places if place != RATE or self._rate_source is None]

    def _states_of(self, state: Any) -> dict[int, Any]:
        """Return the parts of `state`: those of this optimizer and of its inner ones, by `id` of the optimizer."""
        return {id(self): state}

    def _state_with(self, views: Sequence[View], values: Sequence[Any]) -> Any:
        """Return the state with `values` in the place of the arrays of `views`."""
        own = [(view.place, x) for view, x in zip(views, values, strict=True) if view.optimizer is self]
        return with_values(self._state, own)

    @property
    def variables(self) -> Variables:
        """State as assignable variables in Keras 3's order: iteration, learning_rate (unless scheduled), slots."""
        return Variables(self._listed())

    @property
    def weights(self) -> Variables:
        """State as assignable variables in the order of `get_weights`: iterations, then the slots."""
        return Variables(self._listed(legacy=True))

    @locked
    def get_weights(self) -> list[np.ndarray]:
        """Return `[iterations, slots...]` in tf.keras's order: slot name by slot name, without the learning rate."""
        return [np.array(view._raw_value()) for view in self.weights]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set the state to a list from `get_weights`.

        Raises:
            ValueError: if the optimizer is not built; if the list has another length, or an array another shape or a
                kind of number that does not fit. Nothing is changed then.
        """
        if not self._paths:
            raise ValueError("`set_weights` needs a built optimizer. Call `build(variables)` first.")
        weights = [np.array(w) for w in check_iterable("weights", weights)]
        views = _of_length(self.weights, len(weights))
        if len(weights) != len(views):
            raise ValueError(
                f"`weights` must have {len(views)} elements: {[view.name for view in views]}. Received: "
                f"{len(weights)}. (The learning rate is not in this list; it is in `variables`.)"
            )
        self._store_all(views, weights)

    @locked
    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Write the values of `variables` into a mapping, under "0", "1", ..., as in Keras's `.weights.h5`."""
        check(hasattr(store, "__setitem__"), "store", store, "a mapping")
        for i, view in enumerate(self.variables):
            store[str(i)] = np.array(view._raw_value())

    def load_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Read what `save_own_variables` wrote. A store of another length is skipped with a warning, as in Keras."""
        check(hasattr(store, "keys"), "store", store, "a mapping")
        views = _of_length(self.variables, len(store.keys()))
        if len(store.keys()) != len(views):
            warnings.warn(
                f"Skipping the variables of optimizer {self.name!r}: it has {len(views)}, and the store has "
                f"{len(store.keys())}. Build it first, with the same settings.",
                stacklevel=2,
            )
            return
        self._store_all(views, [np.array(store[str(i)]) for i in range(len(views))])

    @locked
    def _store_all(self, views: list[View], values: list[np.ndarray]) -> None:
        """Check that `values` fit, and set `views` to them. The caller must not use the arrays afterwards."""
        for view, value in zip(views, values, strict=True):
            have, name = view._raw_value(), view.name
            if value.shape != have.shape:
                raise ValueError(f"The weight `{name}` must have shape {have.shape}. Received: shape {value.shape}")
            if _number_rank(value.dtype) > _number_rank(have.dtype):
                raise ValueError(f"The weight `{name}` must be of dtype {have.dtype}. Received: dtype {value.dtype}")
        self._put(self._state_with(views, cast_like(views, values)))


def _of_length(views: list[View], count: int) -> list[View]:
    """Return `views`; without those of master weights, which other libraries lack, if that gives `count`."""
    plain = [view for view in views if view.place[2:] != (MASTER,)]
    return plain if len(plain) == count else views


def cast_like(views: list[View], values: Sequence[Any]) -> list[Any]:
    """Return `values` as arrays with the dtypes and devices of `views`."""
    arrays = [as_array(x, "optimizer_variables") for x in values]
    present = [view._raw_value() for view in views]
    return [device_put_like(x.astype(y.dtype), y) for x, y in zip(arrays, present, strict=True)]


def _number_rank(dtype: Any) -> int:
    """Return the rank of a dtype's kind of number. A number does not fit into a dtype of lower rank."""
    for rank, kind in enumerate((jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)):
        if jnp.issubdtype(dtype, kind):
            return rank
    return 9
