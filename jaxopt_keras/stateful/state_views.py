"""An optimizer's state as variables: what they are called, and in which order the generations of Keras list them."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from jaxopt_keras.engine.stages.accumulate import MICRO_STEP, SUM
from jaxopt_keras.engine.stages.average import AVERAGE
from jaxopt_keras.engine.stages.guard import SKIPPED, USUAL
from jaxopt_keras.stateful.variable import ArrayLike
from jaxopt_keras.storage.blockwise import Blocks, dequantize, quantize
from jaxopt_keras.storage.masters import MASTER

Place = tuple[Any, ...]
"""The address of an array: ("count",), ("hyperparams", name), ("scalars", name[, leaf]) or ("slots", path, name).

After the last, the `Piece` of a packed variable may say which part of the slot it is.
"""

STEP: Place = ("count",)
RATE: Place = ("hyperparams", "learning_rate")
AROUND = (AVERAGE, SUM, MASTER)
"""The slots that are not the rule's."""
COUNTED = (MICRO_STEP, SKIPPED, USUAL)
"""The scalars that are not the rule's."""


class View(ArrayLike):
    """One array of an optimizer's state, always the current one, that can be assigned."""

    def __init__(self, optimizer: Any, place: Place) -> None:
        self.optimizer, self.place = optimizer, place

    @property
    def name(self) -> str:  # type: ignore[override]  # derived here, given there
        kind, *rest = self.place
        if len(rest) == 3:
            return f"{rest[2].path.replace('/', '_')}_{rest[1]}"
        if kind == "slots":
            return f"{rest[0].replace('/', '_')}_{rest[1]}"
        return {"count": "iteration"}.get(kind) or "_".join(str(x) for x in rest)

    @property
    def path(self) -> str:  # type: ignore[override]  # likewise
        return f"{self.optimizer.name}/{self.name}"

    def _peek(self) -> Any:
        return read(self.optimizer._state_for(self.place), self.place)

    def _load(self) -> Any:
        return jnp.copy(self._peek())  # a copy: the next step donates what is in the state

    def _store(self, value: Any) -> None:
        value = at_home(jnp.copy(value), self._peek())  # likewise
        state = written(self.optimizer._state_for(self.place), self.place, value)
        object.__setattr__(self.optimizer, "_kept", state)

    def __reduce__(self) -> Any:
        return view, (self.optimizer, self.place)


def at_home(value: Any, old: Any) -> Any:
    """`value` where `old` lies, which may be on several devices, or on the host.

    What is there stays as it is: an array that was put somewhere on purpose compiles another program.
    """
    if isinstance(value, Tracer) or value.sharding == old.sharding:
        return value
    return jax.device_put(value, old.sharding)


def view(optimizer: Any, place: Place) -> View:
    """The one view of `place`: a scope tells variables apart by identity."""
    views = optimizer.__dict__.setdefault("_views", {})
    if place not in views:
        views[place] = View(optimizer, place)
    return views[place]


def read(state: Any, place: Place) -> Any:
    """The array at `place`."""
    kind, *rest = place
    if len(rest) == 3:
        return rest[2].of(read(state, place[:3]))
    value = getattr(state, kind)
    if kind == "scalars":
        leaf = jax.tree.leaves(value[rest[0]])[rest[1] if len(rest) > 1 else 0]
        return jax.random.key_data(leaf) if _is_key(leaf) else leaf
    for key in reversed(rest):  # ("slots", path, name): a tree by path for each name
        value = value[key]
    if isinstance(value, Blocks):
        return dequantize(value)
    return getattr(value, "value", value)  # of a Complemented


def _is_key(x: Any) -> bool:
    """Whether `x` is a typed random key, as an optax transformation may keep; its data are numbers."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def written(state: Any, place: Place, value: Any) -> Any:
    """`state` with another array at `place`."""
    kind, *rest = place
    if kind == "count":
        return state._replace(count=value)
    if len(rest) == 3:
        return written(state, place[:3], rest[2].put(read(state, place[:3]), value))
    if kind == "slots":
        key, name = rest
        tree = state.slots.get(name, {})
        return state._replace(slots=state.slots | {name: tree | {key: coded(value, tree.get(key))}})
    old = getattr(state, kind)
    if kind == "scalars":
        leaves, treedef = jax.tree.flatten(old[rest[0]])
        i = rest[1] if len(rest) > 1 else 0
        leaf = leaves[i]
        leaves[i] = jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else value
        value = jax.tree.unflatten(treedef, leaves)
    elif hasattr(old[rest[0]], "complement"):
        value = type(old[rest[0]])(value, 1 - value)
    return state._replace(**{kind: old | {rest[0]: value}})


def coded(value: Any, old: Any) -> Any:
    """`value` in the codes that `old` is kept in, if it is in codes."""
    return quantize(value, old.code) if isinstance(old, Blocks) else value


def has(state: Any, path: str, name: str) -> bool:
    """Whether the variable at `path` has the slot `name`."""
    return path in state.slots.get(name, {})


def slots_of(state: Any, path: str) -> dict[str, Any]:
    """The slots of the variable at `path`, by name."""
    return {name: tree[path] for name, tree in state.slots.items() if path in tree}


def with_slots(state: Any, new: dict[str, dict[str, Any]], names: Any = None) -> Any:
    """`state` with `new`, slots by name for each path, in the place of all slots of those variables.

    `names`: the slots that there may be, whether or not a variable has them; None: as before.
    """
    names = state.slots if names is None else names
    trees: dict[str, dict[str, Any]] = {name: {} for name in names}
    for name, tree in state.slots.items():
        trees[name] = {k: x for k, x in tree.items() if k not in new}
    for path, slots in new.items():
        for name, x in slots.items():
            trees.setdefault(name, {})[path] = x
    return state._replace(slots={name: tree for name, tree in trees.items() if tree or name in names})


def masked(slots: dict[str, Any], paths: Any) -> dict[str, Any]:
    """Trees of slots with a place for each of `paths`, as the kernel has them."""
    nothing = optax.MaskedNode()
    return {
        name: tree if tree.keys() == paths.keys() else {k: tree.get(k, nothing) for k in paths}
        for name, tree in slots.items()
    }


def updated(slots: dict[str, Any], moved: dict[str, Any]) -> dict[str, Any]:
    """`slots` after a step that returned `moved`, which has some of the paths, and places for slots that lack."""
    whole = {name: tree for name, tree in moved.items() if tree.keys() == slots[name].keys()}
    parts = without_masked({name: tree for name, tree in moved.items() if name not in whole})
    return slots | whole | {name: slots[name] | tree for name, tree in parts.items()}


def without_masked(slots: dict[str, Any]) -> dict[str, Any]:
    """Trees of slots without the places of variables that lack the slot."""
    return {
        name: {k: x for k, x in tree.items() if not isinstance(x, optax.MaskedNode)} for name, tree in slots.items()
    }


def keras_order(state: Any, paths: list[str], groups: Any, own: list[str], scheduled: bool) -> list[Place]:
    """As Keras 3 lists `variables`: iteration, rate, averages, accumulators, slots group by group, scalars."""
    rate = [RATE] if "learning_rate" in state.hyperparams and not scheduled else []
    return [
        STEP,
        *rate,
        *_grouped(state, paths, [(name,) for name in AROUND]),
        *_grouped(state, paths, groups),
        *_scalars(state, own),
    ]


def legacy_order(state: Any, paths: list[str], groups: Any, own: list[str], interleaved: bool) -> list[Place]:
    """As tf.keras listed `weights`: iterations, scalars, slots name by name (or interleaved); then what it lacked."""
    names = dict.fromkeys(name for group in groups for name in group)
    split = [tuple(names)] if interleaved else [(name,) for name in names]
    ours = _grouped(state, paths, [(name,) for name in AROUND])
    scalars = _scalars(state, own)
    counted = [p for p in scalars if p[1] in COUNTED]
    return [STEP, *(p for p in scalars if p not in counted), *_grouped(state, paths, split), *ours, *counted]


def slot_groups(state: Any, rule: Any, own: list[str]) -> list[tuple[str, ...]]:
    """The rule's slots in the groups in which Keras lists them, then those that it does not name.

    `own` are the names of slots and variables that a user made, in that order.
    """
    declared = list(getattr(rule, "slot_groups", None) or [])
    fields = list(getattr(getattr(rule, "State", None), "_fields", ()))
    known = {name for group in declared for name in group} | set(AROUND)
    rest = [name for name in fields if name not in known]
    found = {name for name, tree in state.slots.items() if tree and name not in known and name not in rest}
    group = (*rest, *_in_order(found, own))
    return declared + ([group] if group else [])


def _grouped(state: Any, paths: list[str], groups: Any) -> list[Place]:
    return [("slots", path, name) for group in groups for path in paths for name in group if has(state, path, name)]


def _in_order(names: Any, own: list[str]) -> list[str]:
    """By name, and after them what a user made, in the order of making; not as they stand: `jit` sorts dicts."""
    return sorted(names - set(own)) + [name for name in own if name in names]


def _scalars(state: Any, own: list[str]) -> list[Place]:
    places: list[Place] = []
    for name in sorted(_in_order(state.scalars.keys(), own), key=lambda name: name in COUNTED):
        leaves = jax.tree.leaves(state.scalars[name])
        alone = len(leaves) == 1 and leaves[0] is state.scalars[name]
        places += [("scalars", name)] if alone else [("scalars", name, i) for i in range(len(leaves))]
    return places


def assembled(state: Any, places: list[Place], values: list[Any]) -> Any:
    """`state` with `values` at `places`."""
    slots = {name: dict(tree) for name, tree in state.slots.items()}
    rest: list[tuple[Place, Any]] = []
    for place, value in zip(places, values, strict=True):
        if place[0] == "slots":
            tree = slots.setdefault(place[2], {})
            tree[place[1]] = coded(value, tree.get(place[1]))
        else:
            rest.append((place, value))
    state = state._replace(slots=slots)
    for place, value in rest:
        state = written(state, place, value)
    return state
