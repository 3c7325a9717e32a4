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
from jaxopt_keras.storage import formats, hash_rng
from jaxopt_keras.storage.masters import MASTER, has_master, join_master, split_master
from jaxopt_keras.storage.rounding import stochastic


class Stored(NamedTuple):
    """A parameter and its slots as they are stored; the parameter is None where `update` was not given it."""

    p: Any
    slots: Slots


def upcast(p: Any) -> Any:
    """A parameter in the dtype of the arithmetic."""
    return p if p is None else p.astype(compute_dtype(p.dtype))


def initial_slots(core: Core, options: Options, leaf: Leaf, p: Array, slots: Slots) -> Slots:
    """The fresh slots of `p` in the forms in which they will be kept, and its master."""
    kinds = core.kinds(leaf, p) if options.state_dtype else {}
    slots = {name: _formed(options, name, x, kinds.get(name, Slot())) for name, x in slots.items()}
    if has_master(options.master_weights, p.dtype):
        slots[MASTER] = split_master(upcast(p), str(options.master_weights), p.dtype)[1]
    return slots


def _formed(options: Options, name: str, x: Any, kind: Slot) -> Any:
    return formats.quantize_slot(x, choose_format(options, name, x, kind).format, kind)


def choose_format(options: Options, name: str, x: Any, kind: Slot) -> formats.Choice:
    """The form of the slot `name`, of which `x` tells shape and dtype."""
    return formats.choose_format(
        x, formats.requested_format(options.state_dtype, name), kind, lazy=options.sparse == "lazy"
    )


def dequantize(options: Options, kept: Stored, dtype: Any) -> tuple[Any, Slots]:
    """The parameter and the slots as the rule sees them, where the arithmetic has `dtype`."""
    slots = {name: formats.dequantize_slot(x, dtype) for name, x in kept.slots.items() if name != MASTER}
    if MASTER in kept.slots and kept.p is not None:
        return join_master(kept.p, kept.slots[MASTER], str(options.master_weights)), slots
    return upcast(kept.p), slots


def quantize_slots(leaf: Leaf, new: Slots, old: Slots, seeds: "Seeds") -> Slots:
    """What the rule returned, in the forms of `old`."""
    return {name: formats.quantize_like(x, old[name], lambda n=name: seeds.of(leaf, n)) for name, x in new.items()}


def is_plain_cast(options: Options, kept: Stored) -> bool:
    """Whether a parameter is stored as what is nearest to the result, and that is all of it."""
    narrow = kept.p is not None and jnp.finfo(kept.p.dtype).bits < 32
    return MASTER not in kept.slots and not (narrow and options.rounding == "stochastic")


def store_parameter(
    options: Options, leaf: Leaf, new: Array, old: Stored, seeds: "Seeds"
) -> tuple[Array, Array, Slots]:
    """A parameter as it is stored; what it stands for, which is what `update` must reach; its master, as a slot."""
    dtype = new.dtype if old.p is None else old.p.dtype
    seed = (lambda: seeds.of(leaf, "")) if options.rounding == "stochastic" else None
    if MASTER in old.slots:
        p, master = split_master(new, str(options.master_weights), dtype, seed)
        return p, new, {MASTER: master}
    if seed and jnp.finfo(dtype).bits < 32:
        p = stochastic(new, dtype, seed())
        return p, upcast(p), {}
    return new.astype(dtype), new, {}


class Seeds:
    """The seeds of all draws of one step (`noise`). One array, made on first use: XLA compiles hundreds one by one.

    `slots`: those of each of `leaves`.
    """

    def __init__(self, options: Options, leaves: Sequence[Leaf], slots: Sequence[Slots], step: Array) -> None:
        slot_names = dict.fromkeys(name for each in slots for name in each) | {"": None}
        self._names = [f"{leaf.path}/{name}" for name in slot_names for leaf in leaves]
        self._place = {name: i for i, name in enumerate(self._names)}
        self._seed, self._step = options.seed or 0, step

    @functools.cached_property
    def _all(self) -> Array:
        return hash_rng.seeds(self._seed, self._names, self._step)

    def of(self, leaf: Leaf, name: str) -> Array:
        """For a slot, or, by the name "", for the parameter."""
        return jax.lax.index_in_dim(self._all, self._place[f"{leaf.path}/{name}"], keepdims=False)
