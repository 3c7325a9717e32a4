"""Restores a state from a flat dict of arrays.

Missing slots start fresh. A warning names them, and the entries that are not used.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_keras.checkpoint.convert import check, convert
from jaxopt_keras.checkpoint.kernels import adjusted_scalars
from jaxopt_keras.checkpoint.names import (
    STEP,
    is_complement,
    is_hyper,
    leaves,
    listed,
    replaced,
    scalar_name,
    slot_name,
    unflatten,
)
from jaxopt_keras.checkpoint.renumbered_names import renamed
from jaxopt_keras.engine.cores.foreign import STATE as FOREIGN
from jaxopt_keras.engine.stages.accumulate import MICRO_STEP, SUM, WEIGHTS
from jaxopt_keras.engine.stages.own_counts import OWN_COUNT
from jaxopt_keras.engine.state import State
from jaxopt_keras.language.paths import leaves_by_path
from jaxopt_keras.packing.trees import unpacked
from jaxopt_keras.pure.kernel import Kernel
from jaxopt_keras.stateful.state_views import OPTION_SLOTS


class Place(NamedTuple):
    """The target of a restored checkpoint."""

    fresh: State  # the initial state
    kernels: dict[str, Kernel]  # by group name
    params: dict[str, Any]  # by path
    functions: dict[str, Any]  # hyperparameters that are functions, by group and name
    counted: bool = False  # whether paths may differ in automatic counters
    group_of: Callable[[str], str] = lambda path: ""  # the group name of the parameter at a path


def by_path(params: Any) -> dict[str, Any]:
    """The arrays of `params` by path; packed ones are unpacked."""
    return dict(leaves_by_path(unpacked(params)))


def restored(place: Place, flat: Mapping[str, Any], hyper: bool) -> State:
    """Restores the state in `flat` for `place`; warns of entries that are missing or not used.

    Raises:
        TypeError: if `flat` is no mapping, or an array has a wrong kind. ValueError: for another version, for a shape
        that does not match, or if no entry matches.
    """
    like, saved, sources = _matched(place, flat, hyper)
    new = {}
    for name, source in sources.items():
        path = name.removeprefix("slots/").rpartition("/")[0]
        new[name] = convert(name, saved[source], like[name], place.params.get(path))
    if not new.keys() & _slots(like) and _slots(like) and _slots(saved):
        raise ValueError(
            f"Nothing in this checkpoint fits these parameters. It has {listed(_slots(saved))}; needed are "
            f"{listed(_slots(like))}. Entries are matched by path. In the stateful face, paths may differ in "
            "automatic counters (`dense_1`) only. Give the model the names that were saved."
        )
    state = replaced(place.fresh, new)
    state = replaced(state, adjusted_scalars(place.kernels, state, new, _weighted(place.kernels, saved)))
    state = replaced(state, _common_counts(place, state, new))
    numbers = [] if hyper else _other_numbers(place, like, saved)
    _warn_of_differences(like, saved, new, {*sources.values()}, numbers, hyper, int(np.asarray(state.count)))
    return state


def _other_numbers(place: Place, like: dict[str, Any], saved: dict[str, Any]) -> list[str]:
    """Describe the saved hyperparameters that differ from those of the optimizer, without those that are functions."""
    found = []
    for name in (n for n in like.keys() & saved.keys() if n.startswith("hyper/")):
        group, _, own = name.removeprefix("hyper/").rpartition("/")
        if own in place.functions.get(group, ()):
            continue
        here, there = (float(np.asarray(getattr(x, "value", x))) for x in (like[name], saved[name]))
        if not np.isclose(here, there, rtol=1e-6, atol=0):
            found.append(f"{name.removeprefix('hyper/')} {there:.6g} (here {here:.6g})")
    return sorted(found)


def needed(place: Place, declared: Mapping[str, Any], hyper: bool) -> set[str]:
    """The names of the arrays to read for `place`: those that it uses, and single numbers, which say what the rest is.

    Args:
        declared: the shapes and dtypes that a file declares, by name.

    Raises:
        TypeError, ValueError: as in `restored`, if a shape or a dtype does not fit.
    """
    like, saved, sources = _matched(place, declared, hyper)
    for name, source in sources.items():
        check(name, saved[source], like[name])
    used = {id(x) for x in jax.tree.leaves([saved[source] for source in sources.values()])}
    return {name for name, x in declared.items() if id(x) in used or x.size == 1}


def _matched(
    place: Place, flat: Mapping[str, Any], hyper: bool
) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """The leaves of `place`, the entries of `flat`, and the names of the entries by those of the leaves."""
    like, sources = leaves(place.fresh), {}
    former = dict(zip(leaves(place.fresh, jax.tree_util.tree_leaves_with_path), like, strict=True))
    saved = unflatten(renamed(flat, place.params) if place.counted else flat)
    saved = {former.get(name, name): x for name, x in saved.items()}
    for name in like:
        source = next((n for n in _sources(name) if n in saved), None)
        if source is not None and (hyper or not name.startswith("hyper/")):
            sources[name] = source
    return like, saved, sources


def _common_counts(place: Place, state: State, new: Mapping[str, Any]) -> dict[str, Any]:
    """The counts of parameters that have saved slots but no saved count of their own: those that they had in common."""
    found = {}
    for path in {name.removeprefix("slots/").rpartition("/")[0] for name in new if name.startswith("slots/")}:
        name, group = slot_name(path, OWN_COUNT), place.group_of(path)
        if name not in new and OWN_COUNT in unpacked(state.slots):
            found[name] = jnp.copy(state.scalars[group][STEP] if group else state.count)
    return found


def _weighted(groups: Iterable[str], saved: Mapping[str, Any]) -> set[str]:
    """The groups for which weights of accumulation were saved."""
    return {g for g in groups if any(n in saved for n in _sources(scalar_name(g, WEIGHTS)))}


def _sources(name: str) -> list[str]:
    """The saved names to try, in order. A group also takes values that were saved without groups."""
    kind, _, rest = name.partition("/")
    own = rest.rpartition("/")[2]
    if kind not in ("scalars", "hyper") or own == rest:
        return [name]
    return [name, STEP if own == STEP else f"{kind}/{own}"]


def _slots(found: Mapping[str, Any]) -> set[str]:
    """The names of slots of rules, and of arrays in the state of an optax transformation."""
    names = {name for name in found if name.startswith("slots/") and name.rpartition("/")[2] not in OPTION_SLOTS}
    return names | {name for name, x in found.items() if f"/{FOREIGN}/" in name and getattr(x, "shape", None) != ()}


def _warn_of_differences(
    like: Any, saved: dict[str, Any], new: Any, used: set[str], numbers: list[str], hyper: bool, step: int
) -> None:
    """Warns of unused entries, of slots that start fresh, and of hyperparameters that differ or were not saved."""
    idle = all(np.all(np.asarray(x) == 0) for n, x in saved.items() if n.rpartition("/")[2] == MICRO_STEP)

    def matters(name: str) -> bool:
        own = name.rpartition("/")[2]
        if is_hyper(name):
            return is_complement(name)  # without its value: with it, the two are one entry
        if own == STEP and np.ndim(saved[name]) == 0 and int(np.asarray(saved[name])) == step:
            return False
        return not (name in used or name.startswith("params/") or (idle and own in (SUM, MICRO_STEP, WEIGHTS)))

    extra = [name for name in saved if matters(name)]
    fresh = [name for name in _slots(like) if name not in new and 0 not in like[name].shape]
    kept = [name for name in like if hyper and name.startswith("hyper/") and name not in new]
    warned = [f"this optimizer does not use {listed(extra)}"] if extra else []
    warned += [f"these slots were not saved and start fresh: {listed(fresh)}"] if fresh else []
    warned += [f"these hyperparameters were not saved and keep their values: {listed(kept)}"] if kept else []
    if numbers:
        warned.append(
            f"it was saved with other numbers, which are not restored: {', '.join(numbers)}; `hyper=True` restores them"
        )
    if warned:
        warnings.warn("The checkpoint differs from this optimizer: " + "; ".join(warned), stacklevel=4)
