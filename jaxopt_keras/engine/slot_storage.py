"""Storage of a parameter and its slots between steps: conversion to the dtype of the arithmetic, and back.

A parameter is stored in its own dtype, with a master weight if the options ask for one. The format of a slot is chosen
when the slot is created (`storage.formats`); from then on the stored slot carries it.
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
    """A parameter and its slots as stored; the parameter is None if `update` was called without it."""

    p: Any
    slots: Slots


def upcast(p: Any) -> Any:
    """Convert a parameter to the dtype of the arithmetic; None stays None."""
    return p if p is None else p.astype(compute_dtype(p.dtype))


def initial_slots(core: Core, options: Options, leaf: Leaf, p: Array, slots: Slots) -> Slots:
    """Convert the fresh slots of `p` to their formats, and add its master weight."""
    kinds = core.kinds(leaf, p) if options.state_dtype else {}
    slots = {name: _in_format(options, name, x, kinds.get(name, Slot())) for name, x in slots.items()}
    if has_master(options.master_weights, p.dtype):
        slots[MASTER] = split_master(upcast(p), str(options.master_weights), p.dtype)[1]
    return slots


def _in_format(options: Options, name: str, x: Any, kind: Slot) -> Any:
    return formats.quantize_slot(x, choose_format(options, name, x, kind).format, kind)


def choose_format(options: Options, name: str, x: Any, kind: Slot) -> formats.Choice:
    """Choose the format of the slot `name`; `x` gives its shape and dtype."""
    requested = formats.requested_format(options.state_dtype, name)
    return formats.choose_format(x, requested, kind, lazy=options.sparse == "lazy")


def dequantize(options: Options, stored: Stored, dtype: Any) -> tuple[Any, Slots]:
    """Convert a parameter and its slots to the `dtype` of the arithmetic. The parameter is its master weight."""
    slots = {name: formats.dequantize_slot(x, dtype) for name, x in stored.slots.items() if name != MASTER}
    if MASTER in stored.slots and stored.p is not None:
        return join_master(stored.p, stored.slots[MASTER], str(options.master_weights)), slots
    return upcast(stored.p), slots


def quantize_slots(leaf: Leaf, new: Slots, old: Slots, seeds: "Seeds") -> Slots:
    """Convert the slots that the rule returned to the formats of `old`."""
    return {name: formats.quantize_like(x, old[name], lambda n=name: seeds.of(leaf, n)) for name, x in new.items()}


def is_plain_cast(options: Options, stored: Stored) -> bool:
    """Whether storing a parameter is a cast to its dtype: no master weight, and no stochastic rounding."""
    narrow = stored.p is not None and jnp.finfo(stored.p.dtype).bits < 32
    return MASTER not in stored.slots and not (narrow and options.rounding == "stochastic")


def store_parameter(
    options: Options, leaf: Leaf, new: Array, old: Stored, seeds: "Seeds"
) -> tuple[Array, Array, Slots]:
    """Return the parameter as stored, the value that it represents (for `update`), and the slot of its master."""
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
    """The random seeds of one step (`hash_rng`), for each slot and parameter.

    They are one array, made on first use, since XLA would compile hundreds of separate ones.

    Args:
        slots: the slots of each of `leaves`.
    """

    def __init__(self, options: Options, leaves: Sequence[Leaf], slots: Sequence[Slots], step: Array) -> None:
        slot_names = dict.fromkeys(name for each in slots for name in each) | {"": None}
        self._names = [f"{leaf.path}/{name}" for name in slot_names for leaf in leaves]
        self._index = {name: i for i, name in enumerate(self._names)}
        self._seed, self._step = options.seed or 0, step

    @functools.cached_property
    def _all(self) -> Array:
        return hash_rng.seeds(self._seed, self._names, self._step)

    def of(self, leaf: Leaf, name: str) -> Array:
        """Return the seed of the slot `name`, or of the parameter for the name ""."""
        return jax.lax.index_in_dim(self._all, self._index[f"{leaf.path}/{name}"], keepdims=False)
