"""An optimizer's state as `keras.Variable`s, for Keras's trainer, savers and callbacks.

The variables are views: the arrays are stored once, in the optimizer's state. A quantized slot has two variables, for
its codes and its scales.

During an epoch Keras's trainer holds the values itself and empties the variables. The state then has a
`jax.ShapeDtypeStruct` for each value, so that its structure stays complete.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
from jax import Array
from jax.sharding import NamedSharding

from jaxopt_keras.stateful.lock import locked
from jaxopt_keras.stateful.state_views import Place, View
from jaxopt_keras.stateful.variable_kinds import take
from jaxopt_keras.storage.blockwise import Blocks


class Address(NamedTuple):
    """The address of an array: the optimizer (a wrapper or an inner one), the place in its state, and the leaf."""

    optimizer: Any
    keys: Place
    leaf: int

    @classmethod
    def of(cls, view: View) -> "Address":
        """The address of the array of a view."""
        if view.place[0] == "scalars" and len(view.place) == 3:  # a leaf of an optax transformation's state
            return cls(view.optimizer, view.place[:2], view.place[2])
        return cls(view.optimizer, view.place, 0)


class StateVariable(keras.Variable):
    """One array of an optimizer's state."""

    def __init__(self, address: Address, name: str) -> None:
        self._optimizer, self._address, self.referenced = address.optimizer, address, False
        value: Any = self._value
        # A slot keeps the sharding of its parameter. Keras chooses that of other variables.
        layout = value.sharding if isinstance(value.sharding, NamedSharding) else None
        super().__init__(value, dtype=value.dtype.name, trainable=False, name=name, layout=layout)
        self.referenced = False

    @property
    @locked
    def _value(self) -> Array | None:
        value = jax.tree.leaves(_at(self._optimizer._state, self._address.keys))[self._address.leaf]
        if isinstance(value, jax.ShapeDtypeStruct):
            return None
        self.referenced = True
        return jax.random.key_data(value) if _is_key(value) else value

    @_value.setter
    @locked
    def _value(self, value: Array | None) -> None:
        state, keys = self._optimizer._state, self._address.keys
        leaves, treedef = jax.tree.flatten(_at(state, keys))
        old = leaves[self._address.leaf]
        if value is None:
            leaves[self._address.leaf] = jax.ShapeDtypeStruct(old.shape, old.dtype)
        else:
            leaves[self._address.leaf] = _with_key_type(value, old)
        self._optimizer._set_state(_with(state, keys, jax.tree.unflatten(treedef, leaves)))

    @property
    def in_trainer(self) -> bool:
        """Whether Keras's trainer holds the value at the moment."""
        return self._value is None

    def copy_if_referenced(self) -> None:
        """Copies the array if a caller has read it and may still hold it: the next step donates it."""
        if self.referenced:
            self._value = take(lambda: self._value)
            self.referenced = False


class Layout:
    """Conversion between an optimizer's whole state and a list of arrays."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer, views = optimizer, optimizer.variables  # listed first: that may find more state
        leaves, treedef = jax.tree.flatten(optimizer._state)
        numbers = optimizer._states_of(jax.tree.unflatten(treedef, range(len(leaves))))
        self.addresses: list[tuple[Address, str]] = []
        self._order: list[int] = []
        for view in views:
            for address, suffix in _leaves(Address.of(view)):
                self.addresses.append((address, view.name + suffix))
                inside = _at(numbers[id(address.optimizer)], address.keys)
                self._order.append(jax.tree.leaves(inside)[address.leaf])

    def assemble(self, values: Sequence[Any]) -> Any:
        """The state with `values` as its arrays. Hyperparameters that are not listed keep their current values."""
        leaves, treedef = jax.tree.flatten(self._optimizer._state)
        for i, value in zip(self._order, values, strict=True):
            leaves[i] = _with_key_type(value, leaves[i])
        return jax.tree.unflatten(treedef, leaves)

    def arrays(self, state: Any) -> list[Any]:
        """The arrays of a state, in the order of `addresses`."""
        leaves = jax.tree.leaves(state)
        return [jax.random.key_data(x) if _is_key(x) else x for x in (leaves[i] for i in self._order)]


def _leaves(address: Address) -> Iterator[tuple[Address, str]]:
    """The arrays of a view with this address, with the suffixes of their names."""
    if isinstance(_at(address.optimizer._state, address.keys), Blocks):
        yield from ((address._replace(leaf=i), f"_{part}") for i, part in enumerate(("codes", "scales")))
    else:
        yield address, ""


def _at(state: Any, keys: Place) -> Any:
    found = getattr(state, keys[0])
    for key in reversed(keys[1:]):  # ("slots", path, name): each slot name has a tree by path
        found = found[key]
    return found


def _with(state: Any, keys: Place, value: Any) -> Any:
    """`state` with another value. A slot is replaced in place, because copying the dicts of slots would be slow."""
    kind, *rest = keys
    if kind == "slots":
        state.slots[rest[1]][rest[0]] = value
        return state
    return state._replace(**{kind: getattr(state, kind) | {rest[0]: value} if rest else value})


def _is_key(x: Any) -> bool:
    """Whether `x` is a typed random key, for which Keras has no dtype."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _with_key_type(value: Any, old: Any) -> Any:
    return jax.random.wrap_key_data(value, impl=jax.random.key_impl(old)) if _is_key(old) else value
