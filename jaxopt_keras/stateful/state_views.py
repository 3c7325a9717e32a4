"""An optimizer's state as variables: views of its arrays, and the orders in which Keras versions list them."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from jaxopt_keras.engine.stages.accumulate import MICRO_STEP, SUM
from jaxopt_keras.engine.stages.average import AVERAGE
from jaxopt_keras.engine.stages.guard import SKIPPED, USUAL
from jaxopt_keras.language.rule import KerasOrder
from jaxopt_keras.stateful.variable import ArrayLike
from jaxopt_keras.storage.blockwise import Blocks, dequantize, quantize
from jaxopt_keras.storage.masters import MASTER

Place = tuple[Any, ...]
"""Address of an array: ("count",), ("hyperparams", name), ("scalars", name[, leaf]) or ("slots", path, name[, part]).

The `part` is the `Part` of a packed variable: its range of the slot of the buffer. The address of an array of an inner
optimizer is (the number of that optimizer, the address in its state).
"""

STEP: Place = ("count",)
RATE: Place = ("hyperparams", "learning_rate")
OPTION_SLOTS = (AVERAGE, SUM, MASTER)
"""Names of the slots that options add to the rule's."""
OPTION_SCALARS = (MICRO_STEP, SKIPPED, USUAL)
"""Names of the scalars that options add to the rule's."""


class View(ArrayLike):
    """An array of an optimizer's state as a variable: it reads the current array, and can be assigned."""

    def __init__(self, optimizer: Any, place: Place) -> None:
        self.optimizer, self.place = optimizer, place

    @property
    def name(self) -> str:  # type: ignore[override]  # a property here, an attribute there
        kind, *rest = self.place
        if len(rest) == 3:
            return f"{rest[2].path.replace('/', '_')}_{rest[1]}"
        if kind == "slots":
            return f"{rest[0].replace('/', '_')}_{rest[1]}"
        return {"count": "iteration"}.get(kind) or "_".join(str(x) for x in rest)

    @property
    def path(self) -> str:  # type: ignore[override]  # likewise
        return f"{self.optimizer.name}/{self.name}"

    def _raw_value(self) -> Any:
        return read(self.optimizer._state_for(self.place), self.place)

    def _safe_value(self) -> Any:
        return jnp.copy(self._raw_value())  # a copy: the next step donates the state's arrays

    def _store(self, value: Any) -> None:
        value = device_put_like(jnp.copy(value), self._raw_value())  # likewise
        state = with_value(self.optimizer._state_for(self.place), self.place, value)
        object.__setattr__(self.optimizer, "_kept", state)

    def __reduce__(self) -> Any:
        return view, (self.optimizer, self.place)


def device_put_like(value: Any, old: Any) -> Any:
    """Move `value` to the devices or the host memory of `old`, sharded like it.

    An array that is there already is not passed to `device_put`: that would commit it, and a step with committed arrays
    is another program.
    """
    if isinstance(value, Tracer) or value.sharding == old.sharding:
        return value
    return jax.device_put(value, old.sharding)


def view(optimizer: Any, place: Place) -> View:
    """Return the view of `place`. There is one for each place, since a scope identifies variables by `id`."""
    views = optimizer.__dict__.setdefault("_views", {})
    if place not in views:
        views[place] = View(optimizer, place)
    return views[place]


def read(state: Any, place: Place) -> Any:
    """Return the array at `place`."""
    kind, *rest = place
    if isinstance(kind, int):
        return read(state.slots[kind], rest[0])
    if len(rest) == 3:
        return rest[2].read(read(state, place[:3]))
    value = getattr(state, kind)
    if kind == "scalars":
        leaf = jax.tree.leaves(value[rest[0]])[rest[1] if len(rest) > 1 else 0]
        return jax.random.key_data(leaf) if _is_key(leaf) else leaf
    for key in reversed(rest):  # ("slots", path, name): slots are trees by name, then by path
        value = value[key]
    if isinstance(value, Blocks):
        return dequantize(value)
    return getattr(value, "value", value)  # a `Complemented` keeps a number with its complement


def _is_key(x: Any) -> bool:
    """Whether `x` is a typed random key (optax transformations may keep some). Only its data are numbers."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def with_value(state: Any, place: Place, value: Any) -> Any:
    """Return `state` with another array at `place`."""
    kind, *rest = place
    if kind == "count":
        return state._replace(count=value)
    if len(rest) == 3:
        return with_value(state, place[:3], rest[2].write(read(state, place[:3]), value))
    if kind == "slots":
        key, name = rest
        tree = state.slots.get(name, {})
        return state._replace(slots=state.slots | {name: tree | {key: quantized_like(value, tree.get(key))}})
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


def quantized_like(value: Any, old: Any) -> Any:
    """Return `value` quantized like `old`, if `old` is quantized."""
    return quantize(value, old.code) if isinstance(old, Blocks) else value


def has(state: Any, path: str, name: str) -> bool:
    """Whether the variable at `path` has the slot `name`."""
    return path in state.slots.get(name, {})


def slots_of(state: Any, path: str) -> dict[str, Any]:
    """Return the slots of the variable at `path`, by name."""
    return {name: tree[path] for name, tree in state.slots.items() if path in tree}


def with_slots(state: Any, new: dict[str, dict[str, Any]], names: Any = None) -> Any:
    """Return `state` with new slots of some variables, in the place of all slots that these variables had.

    Args:
        state: the state.
        new: slots by name, for each variable's path.
        names: names of slots to keep even if no variable has such a slot; None: those of `state`.
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
    """Return trees of slots for all of `paths`, as the kernel takes them, with `MaskedNode`s for missing slots."""
    absent = optax.MaskedNode()
    return {
        name: tree if tree.keys() == paths.keys() else {k: tree.get(k, absent) for k in paths}
        for name, tree in slots.items()
    }


def updated(slots: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return `slots` after a step that returned the trees `new`, of some of the paths and with `MaskedNode`s."""
    complete = {name: tree for name, tree in new.items() if tree.keys() == slots[name].keys()}
    partial = without_masked({name: tree for name, tree in new.items() if name not in complete})
    return slots | complete | {name: slots[name] | tree for name, tree in partial.items()}


def without_masked(slots: dict[str, Any]) -> dict[str, Any]:
    """Return trees of slots without `MaskedNode`s: a variable that lacks a slot is absent from its tree."""
    return {
        name: {k: x for k, x in tree.items() if not isinstance(x, optax.MaskedNode)} for name, tree in slots.items()
    }


def keras_order(state: Any, paths: list[str], groups: Any, custom_names: list[str], scheduled: bool) -> list[Place]:
    """Return places in Keras 3's order of `variables`: iteration, rate, averages, sums, slots by group, scalars.

    Args:
        state: the state.
        paths: the variables' paths, in the order of registration.
        groups: from `slot_groups`.
        custom_names: as in `slot_groups`.
        scheduled: whether the rate is a schedule's: then it is not listed.
    """
    rate = [RATE] if "learning_rate" in state.hyperparams and not scheduled else []
    return [
        STEP,
        *rate,
        *_grouped(state, paths, [(name,) for name in OPTION_SLOTS]),
        *_grouped(state, paths, groups),
        *_scalars(state, custom_names),
    ]


def legacy_order(state: Any, paths: list[str], groups: Any, custom_names: list[str], interleaved: bool) -> list[Place]:
    """Return places in tf.keras's order of `weights`: iterations, scalars, slots; then what tf.keras lacks.

    Args: as in `keras_order`; slots are listed name by name or, if `interleaved`, variable by variable.
    """
    names = dict.fromkeys(name for group in groups for name in group)
    split = [tuple(names)] if interleaved else [(name,) for name in names]
    ours = _grouped(state, paths, [(name,) for name in OPTION_SLOTS])
    scalars = _scalars(state, custom_names)
    counted = [p for p in scalars if p[1] in OPTION_SCALARS]
    return [STEP, *(p for p in scalars if p not in counted), *_grouped(state, paths, split), *ours, *counted]


def slot_groups(state: Any, rule: Any, custom_names: list[str]) -> list[tuple[str, ...]]:
    """Return the names of slots in the groups in which Keras lists them; slots that are in none form one more group.

    Args:
        state: the state.
        rule: a rule, which may declare groups (`Rule.keras`), or another core.
        custom_names: names of the slots and variables that a user's class created, in the order of creation.
    """
    declared = list(getattr(rule, "keras", KerasOrder()).slot_groups)
    fields = list(getattr(getattr(rule, "State", None), "_fields", ()))
    known = {name for group in declared for name in group} | set(OPTION_SLOTS)
    others = [name for name in fields if name not in known]
    found = {name for name, tree in state.slots.items() if tree and name not in known and name not in others}
    group = (*others, *_in_order(found, custom_names))
    return declared + ([group] if group else [])


def _grouped(state: Any, paths: list[str], groups: Any) -> list[Place]:
    return [("slots", path, name) for group in groups for path in paths for name in group if has(state, path, name)]


def _in_order(names: Any, custom_names: list[str]) -> list[str]:
    """Sort names; put custom names last, in their order. The order of the dict is not kept, since `jit` sorts dicts."""
    return sorted(names - set(custom_names)) + [name for name in custom_names if name in names]


def _scalars(state: Any, custom_names: list[str]) -> list[Place]:
    """Return the places of all scalars, or of their leaves where a scalar is a tree; those of options are last."""
    places: list[Place] = []
    for name in sorted(_in_order(state.scalars.keys(), custom_names), key=lambda name: name in OPTION_SCALARS):
        leaves = jax.tree.leaves(state.scalars[name])
        is_array = len(leaves) == 1 and leaves[0] is state.scalars[name]
        places += [("scalars", name)] if is_array else [("scalars", name, i) for i in range(len(leaves))]
    return places


def with_values(state: Any, places: list[Place], values: list[Any]) -> Any:
    """Return `state` with `values` at `places`."""
    if isinstance(state.slots, list):  # of the states of inner optimizers
        slots: Any = [with_values(s, *_inside(i, places, values)) for i, s in enumerate(state.slots)]
    else:
        slots = {name: dict(tree) for name, tree in state.slots.items()}
    for place, value in zip(places, values, strict=True):
        if place[0] == "slots":
            tree = slots.setdefault(place[2], {})
            tree[place[1]] = quantized_like(value, tree.get(place[1]))
        elif not isinstance(place[0], int):
            state = with_value(state, place, value)
    return state._replace(slots=slots)


def _inside(i: int, places: list[Place], values: list[Any]) -> tuple[list[Place], list[Any]]:
    """Return those places that are in the state of the inner optimizer `i`, as it has them, and their values."""
    chosen = [n for n, place in enumerate(places) if place[0] == i]
    return [places[n][1] for n in chosen], [values[n] for n in chosen]
