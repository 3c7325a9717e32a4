"""An optimizer's state as `keras.Variable`s, which is what Keras's trainer, savers and callbacks handle.

They are views: the state stays where the optimizer has it, once. A slot in codes is two of them, codes and scales.

During an epoch Keras's trainer carries the values itself and empties the variables. In the state there is then the
value's shape and dtype (`jax.ShapeDtypeStruct`), so that its structure is whole at any time.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
from jax import Array
from jax.sharding import NamedSharding

from jaxopt_keras.stateful.state_views import Place
from jaxopt_keras.stateful.variable_kinds import Handle
from jaxopt_keras.stateful.wrappers import Wrapper
from jaxopt_keras.storage.blockwise import Blocks


class Spot(NamedTuple):
    """Where an array lies: in which inner optimizer (numbers, from the outside in), where in its state, which leaf."""

    inner: tuple[int, ...]
    keys: Place
    leaf: int

    @classmethod
    def of(cls, place: Place) -> "Spot":
        """Of a place as `Optimizer.places` says it."""
        inner = []
        while isinstance(place[0], int):
            inner.append(place[0])
            place = place[1]
        if place[0] == "scalars" and len(place) == 3:  # a leaf of what an optax transformation keeps
            return cls(tuple(inner), place[:2], place[2])
        return cls(tuple(inner), place, 0)


class StateVariable(keras.Variable):
    """One array of an optimizer's state."""

    def __init__(self, optimizer: Any, spot: Spot, name: str) -> None:
        for i in spot.inner:
            optimizer = optimizer._inner[i]
        self._optimizer, self._spot, self.lent = optimizer, spot, False
        value: Any = self._value
        # A slot lies where its parameter does; the rest where Keras puts such variables.
        layout = value.sharding if isinstance(value.sharding, NamedSharding) else None
        super().__init__(value, dtype=value.dtype.name, trainable=False, name=name, layout=layout)
        self.lent = False

    @property
    def _value(self) -> Array | None:
        value = jax.tree.leaves(_at(self._optimizer._state, self._spot.keys))[self._spot.leaf]
        if isinstance(value, jax.ShapeDtypeStruct):
            return None
        self.lent = True
        return jax.random.key_data(value) if _is_key(value) else value

    @_value.setter
    def _value(self, value: Array | None) -> None:
        state, keys = self._optimizer._state, self._spot.keys
        leaves, treedef = jax.tree.flatten(_at(state, keys))
        old = leaves[self._spot.leaf]
        if value is None:
            leaves[self._spot.leaf] = jax.ShapeDtypeStruct(old.shape, old.dtype)
        else:
            leaves[self._spot.leaf] = _wrapped(value, old)
        self._optimizer._set_state(_with(state, keys, jax.tree.unflatten(treedef, leaves)))

    @property
    def away(self) -> bool:
        """Whether Keras's trainer has the value at the moment."""
        return self._value is None

    def take_back(self) -> None:
        """Copies the array if somebody who has read it still holds it: the next step donates it."""
        if self.lent:
            self._value = _Held(self).take()
            self.lent = False


class _Held(Handle):
    def read(self) -> Any:
        return self.variable._value


class Layout:
    """An optimizer's whole state as a list of arrays, and back."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        places = optimizer.places()
        leaves, treedef = jax.tree.flatten(_whole(optimizer))
        numbers = jax.tree.unflatten(treedef, range(len(leaves)))
        self.spots: list[tuple[Spot, str]] = []
        self._order: list[int] = []
        for place in places:
            first, name = Spot.of(place), optimizer.view(place).name
            for spot, suffix in _leaves(optimizer, first):
                self.spots.append((spot, name + suffix))
                self._order.append(jax.tree.leaves(_inside(numbers, spot))[spot.leaf])

    def assembled(self, values: Sequence[Any]) -> Any:
        """The state with `values` as its arrays; what is not among them (hyperparameters) as it is now."""
        leaves, treedef = jax.tree.flatten(_whole(self._optimizer))
        for i, value in zip(self._order, values, strict=True):
            leaves[i] = _wrapped(value, leaves[i])
        return jax.tree.unflatten(treedef, leaves)

    def listed(self, state: Any) -> list[Any]:
        """The arrays of a state."""
        leaves = jax.tree.leaves(state)
        return [jax.random.key_data(x) if _is_key(x) else x for x in (leaves[i] for i in self._order)]


def _whole(optimizer: Any) -> Any:
    """The state as a step takes it."""
    if isinstance(optimizer, Wrapper):
        return optimizer._state, [_whole(inner) for inner in optimizer._inner]
    return optimizer._state


def _inside(whole: Any, spot: Spot) -> Any:
    for i in spot.inner:
        whole = whole[1][i]
    own = whole[0] if type(whole) is tuple else whole  # a wrapper's own state, beside the inner ones
    return _at(own, spot.keys)


def _leaves(optimizer: Any, spot: Spot) -> Iterator[tuple[Spot, str]]:
    """The arrays at a place that `Optimizer.places` names, with what tells their names apart."""
    what = _inside(_whole(optimizer), spot)
    if isinstance(what, Blocks):
        yield from ((spot._replace(leaf=i), f"_{part}") for i, part in enumerate(("codes", "scales")))
    else:
        yield spot, ""


def _at(state: Any, keys: Place) -> Any:
    what = getattr(state, keys[0])
    for key in reversed(keys[1:]):  # ("slots", path, name): a tree by path for each name
        what = what[key]
    return what


def _with(state: Any, keys: Place, value: Any) -> Any:
    """`state` with another value; a slot is exchanged in place, since there are many."""
    kind, *rest = keys
    if kind == "slots":
        state.slots[rest[1]][rest[0]] = value
        return state
    return state._replace(**{kind: getattr(state, kind) | {rest[0]: value} if rest else value})


def _is_key(x: Any) -> bool:
    """Whether it is a typed random key, for which Keras has no dtype."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _wrapped(value: Any, old: Any) -> Any:
    return jax.random.wrap_key_data(value, impl=jax.random.key_impl(old)) if _is_key(old) else value
