"""What lies in memory between two steps: a parameter and its slots in their stored forms, and the way in and out.

A parameter is stored in its own dtype, with a master weight beside it where the options say so; a slot in the form that
was chosen for it at the start (`storage.forms`), which from then on it shows itself.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.engine.core import Core, Leaf, Slots
from jaxopt_keras.language.numerics import compute_dtype
from jaxopt_keras.language.options import Options
from jaxopt_keras.language.rule import Slot
from jaxopt_keras.storage import formats as forms
from jaxopt_keras.storage import hash_rng as noise
from jaxopt_keras.storage.masters import MASTER, has_master, join, split
from jaxopt_keras.storage.rounding import stochastic


class Kept(NamedTuple):
    """A parameter and its slots as they are stored; the parameter is None where `update` was not given it."""

    p: Any
    slots: Slots


def wide(p: Any) -> Any:
    """A parameter in the dtype of the arithmetic."""
    return p if p is None else p.astype(compute_dtype(p.dtype))


def first(core: Core, options: Options, leaf: Leaf, p: Array, slots: Slots) -> Slots:
    """The fresh slots of `p` in the forms in which they will be kept, and its master."""
    kinds = core.kinds(leaf, p) if options.state_dtype else {}
    slots = {name: _formed(options, name, x, kinds.get(name, Slot())) for name, x in slots.items()}
    if has_master(options.master_weights, p.dtype):
        slots[MASTER] = split(wide(p), str(options.master_weights), p.dtype)[1]
    return slots


def _formed(options: Options, name: str, x: Any, kind: Slot) -> Any:
    return forms.stored(x, chosen(options, name, x, kind).form, kind)


def chosen(options: Options, name: str, x: Any, kind: Slot) -> forms.Choice:
    """The form of the slot `name`, of which `x` tells shape and dtype."""
    return forms.choose(x, forms.named(options.state_dtype, name), kind, lazy=options.sparse == "lazy")


def opened(options: Options, kept: Kept, dtype: Any) -> tuple[Any, Slots]:
    """The parameter and the slots as the rule sees them, where the arithmetic has `dtype`."""
    slots = {name: forms.opened(x, dtype) for name, x in kept.slots.items() if name != MASTER}
    if MASTER in kept.slots and kept.p is not None:
        return join(kept.p, kept.slots[MASTER], str(options.master_weights)), slots
    return wide(kept.p), slots


def stored_slots(leaf: Leaf, new: Slots, old: Slots, salts: "Salts") -> Slots:
    """What the rule returned, in the forms of `old`."""
    return {name: forms.written(x, old[name], lambda n=name: salts.of(leaf, n)) for name, x in new.items()}


def is_nearest(options: Options, kept: Kept) -> bool:
    """Whether a parameter is stored as what is nearest to the result, and that is all of it."""
    narrow = kept.p is not None and jnp.finfo(kept.p.dtype).bits < 32
    return MASTER not in kept.slots and not (narrow and options.rounding == "stochastic")


def stored(options: Options, leaf: Leaf, new: Array, old: Kept, salts: "Salts") -> tuple[Array, Array, Slots]:
    """A parameter as it is stored; what it stands for, which is what `update` must reach; its master, as a slot."""
    dtype = new.dtype if old.p is None else old.p.dtype
    salt = (lambda: salts.of(leaf, "")) if options.rounding == "stochastic" else None
    if MASTER in old.slots:
        p, master = split(new, str(options.master_weights), dtype, salt)
        return p, new, {MASTER: master}
    if salt and jnp.finfo(dtype).bits < 32:
        p = stochastic(new, dtype, salt())
        return p, wide(p), {}
    return new.astype(dtype), new, {}


class Salts:
    """The salts of all draws of one step (`noise`). One array, made on first use: XLA compiles hundreds one by one.

    `slots`: those of each of `leaves`.
    """

    def __init__(self, options: Options, leaves: Sequence[Leaf], slots: Sequence[Slots], step: Array) -> None:
        slot_names = dict.fromkeys(name for each in slots for name in each) | {"": None}
        self._names = [f"{leaf.path}/{name}" for name in slot_names for leaf in leaves]
        self._place = {name: i for i, name in enumerate(self._names)}
        self._seed, self._step = options.seed or 0, step

    @functools.cached_property
    def _all(self) -> Array:
        return noise.salts(self._seed, self._names, self._step)

    def of(self, leaf: Leaf, name: str) -> Array:
        """For a slot, or, by the name "", for the parameter."""
        return jax.lax.index_in_dim(self._all, self._place[f"{leaf.path}/{name}"], keepdims=False)
