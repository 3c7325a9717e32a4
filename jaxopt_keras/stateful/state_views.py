"""An optimizer's state as variables: views of its arrays, and the orders in which Keras versions list them."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from jaxopt_keras.engine.stages.accumulate import LOSSES, MICRO_STEP, SUM, WEIGHTS
from jaxopt_keras.engine.stages.average import AVERAGE
from jaxopt_keras.engine.stages.guard import SKIPPED, USUAL
from jaxopt_keras.engine.stages.own_counts import OWN_COUNT
from jaxopt_keras.language.rule import KerasOrder
from jaxopt_keras.stateful.variable import ArrayLike
from jaxopt_keras.storage.blockwise import Blocks, dequantize
from jaxopt_keras.storage.formats import quantize_like
from jaxopt_keras.storage.masters import MASTER

Place = tuple[Any, ...]
"""Address of an array: ("count",), ("hyperparams", name), ("scalars", name[, leaf]) or ("slots", path, name[, part]).

The `part` is the `Part` of a packed variable: its range of the slot of the buffer.
"""

STEP: Place = ("count",)
RATE: Place = ("hyperparams", "learning_rate")
SCHEDULED: Place = ("scheduled",)
"""Not in the state: the rate that the optimizer's schedule or function has at present."""
OPTION_SLOTS = (AVERAGE, SUM, MASTER, OWN_COUNT)
"""Names of the slots that options add to the rule's."""
OPTION_SCALARS = (MICRO_STEP, WEIGHTS, LOSSES, SKIPPED, USUAL)
"""Names of the scalars that options add to the rule's."""


class View(ArrayLike):
    """An array of an optimizer's state as a variable: it reads the current array, and can be assigned."""

    def __init__(self, optimizer: Any, place: Place) -> None:
        self.optimizer, self.place = optimizer, place

    @property
    def name(self) -> str:  # type: ignore[override]  # a property here, an attribute there
        kind, *rest = self.place
        if kind == "slots":
            path, name, *part = rest
            return f"{(part[0].path if part else path).replace('/', '_')}_{name}"
        return "iteration" if kind == "count" else "_".join(map(str, rest))

    @property
    def path(self) -> str:  # type: ignore[override]  # likewise
        return f"{self.optimizer.name}/{self.name}"

    def _raw_value(self) -> Any:
        if self.place == SCHEDULED:
            return self.optimizer._hyper(self.optimizer._kept)["learning_rate"]
        return read(self.optimizer._state_for(self.place), self.place)

    def _safe_value(self) -> Any:
        return jnp.copy(self._raw_value())  # a copy: the next step donates the state's arrays

    def _store(self, value: Any) -> None:
        value = device_put_like(jnp.copy(value), self._raw_value())  # likewise
        state = with_values(self.optimizer._state_for(self.place), [(self.place, value)])
        object.__setattr__(self.optimizer, "_kept", state)

    def __reduce__(self) -> Any:
        return view, (self.optimizer, self.place)


def device_put_like(value: Any, old: Any) -> Any:
    """Move `value` to the devices or the host memory of `old`, sharded like it.

    An array that is there already is not passed to `device_put`: that would commit it, and a step with committed arrays
    is another program.
    """
    if isinstance(value, Tracer) or isinstance(old, Tracer) or value.sharding == old.sharding:
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


def with_values(state: Any, new: Iterable[tuple[Place, Any]]) -> Any:
    """Return `state` with new values at places. Each dict in which something changes is copied once."""
    trees: dict[str, dict[str, Any]] = {}  # the changed trees of slots
    for place, value in new:
        kind, *rest = place
        if kind == "slots":
            key, name, *part = rest
            tree = trees[name] = trees.get(name) or dict(state.slots.get(name, {}))
            value = part[0].write(read(state, place[:3]), value) if part else value
            tree[key] = quantize_like(value, tree[key]) if isinstance(tree.get(key), Blocks) else value
        elif kind == "count":
            state = state._replace(count=value)
        else:
            old = getattr(state, kind)
            state = state._replace(**{kind: old | {rest[0]: _replaced(old[rest[0]], value, *rest[1:])}})
    return state._replace(slots=state.slots | trees) if trees else state


def _replaced(old: Any, value: Any, leaf: int = 0) -> Any:
    """Return a scalar or hyperparameter `old` with another value; of a tree, one leaf is replaced."""
    if hasattr(old, "complement"):
        return type(old)(value, 1 - value)
    leaves, treedef = jax.tree.flatten(old)
    is_key = _is_key(leaves[leaf])
    leaves[leaf] = jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaves[leaf])) if is_key else value
    return jax.tree.unflatten(treedef, leaves)


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
    trees = {name: {} for name in names}
    trees |= {name: {k: x for k, x in tree.items() if k not in new} for name, tree in state.slots.items()}
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


def ordered(state: Any, paths: list[str], rule: Any, custom_names: list[str], legacy: bool) -> list[Place]:
    """Return the places of a state in the order in which Keras lists them.

    Keras 3's `variables`: iteration, rate, averages and sums, slots by group, scalars. tf.keras's `weights`:
    iterations, scalars, slots; then what tf.keras lacks.

    Args:
        state: the state.
        paths: the variables' paths, in the order of registration.
        rule: a rule, which may declare an order (`Rule.keras`), or another core.
        custom_names: as in `slot_groups`.
        legacy: whether the order is tf.keras's; then slots are listed name by name or, if the rule is
            `legacy_interleaved`, variable by variable.
    """

    def grouped(groups: Any) -> list[Place]:
        return [("slots", path, name) for group in groups for path in paths for name in group if has(state, path, name)]

    groups = slot_groups(state, rule, custom_names)
    if legacy:
        names = dict.fromkeys(name for group in groups for name in group)
        interleaved = getattr(rule, "keras", KerasOrder()).legacy_interleaved
        groups = [tuple(names)] if interleaved else [(name,) for name in names]
    added, slots = grouped([(name,) for name in OPTION_SLOTS]), grouped(groups)
    scalars = [place for name in _in_order(state.scalars.keys(), custom_names) for place in _leaves(state, name)]
    own = [place for place in scalars if place[1] not in OPTION_SCALARS]
    counters = [place for place in scalars if place not in own]
    if legacy:
        return [STEP, *own, *slots, *added, *counters]
    rate = [RATE] if "learning_rate" in state.hyperparams else []
    return [STEP, *rate, *added, *slots, *own, *counters]


def slot_groups(state: Any, rule: Any, custom_names: list[str]) -> list[tuple[str, ...]]:
    """Return the names of slots in the groups in which Keras lists them; slots that are in none form one more group.

    Args:
        state: the state.
        rule: a rule, which may declare groups (`Rule.keras`), or another core.
        custom_names: names of the slots and variables that a user's class created, in the order of creation.
    """
    declared = list(getattr(rule, "keras", KerasOrder()).slot_groups)
    fields = list(rule.slots()) if hasattr(rule, "slots") else []
    known = {name for group in declared for name in group} | set(OPTION_SLOTS)
    others = [name for name in fields if name not in known]
    found = {name for name, tree in state.slots.items() if tree and name not in known and name not in others}
    group = (*others, *_in_order(found, custom_names))
    return declared + ([group] if group else [])


def _in_order(names: Any, custom_names: list[str]) -> list[str]:
    """Sort names; put custom names last, in their order. The order of the dict is not kept, since `jit` sorts dicts."""
    return sorted(names - set(custom_names)) + [name for name in custom_names if name in names]


def _leaves(state: Any, name: str) -> list[Place]:
    """Return the place of a scalar, or those of its leaves if it is a tree."""
    leaves = jax.tree.leaves(state.scalars[name])
    is_array = len(leaves) == 1 and leaves[0] is state.scalars[name]
    return [("scalars", name)] if is_array else [("scalars", name, i) for i in range(len(leaves))]
