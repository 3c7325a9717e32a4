"""Storage of a parameter and its slots between steps: conversion to the dtype of the arithmetic, and back.

A parameter is stored in its own dtype, with a master weight if the options ask for one. The format of a slot is chosen
when the slot is created (`storage.formats`); from then on the stored slot carries it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxopt_keras.engine.core import Core, Leaf, Slots
from jaxopt_keras.engine.native.ir import Constant, trace_of
from jaxopt_keras.language.numerics import compute_dtype
from jaxopt_keras.language.options import Options
from jaxopt_keras.language.places import Place, place_of
from jaxopt_keras.language.rule import Slot
from jaxopt_keras.storage import formats, hash_rng
from jaxopt_keras.storage.blockwise import Blocks
from jaxopt_keras.storage.masters import MASTER, has_master, join_master, split_master

Seeds = Callable[[Leaf, str], Array]
COPIES = ("broadcast_in_dim", "reshape", "convert_element_type", "copy", "copy_p")  # primitives that change no number


class Stored(NamedTuple):
    """A parameter and its slots as stored; the parameter is None if `update` was called without it."""

    p: Any
    slots: Slots


def upcast(p: Any) -> Any:
    """Convert a parameter to the dtype of the arithmetic; None stays None."""
    return p if p is None else p.astype(compute_dtype(p.dtype))


def initial_slots(core: Core, options: Options, leaf: Leaf, p: Array, slots: Slots, empty: dict[str, bool]) -> Slots:
    """Convert the fresh slots of `p` to their formats, and add its master weight.

    Args:
        empty: which slots are known to be zeros.
    """
    kinds = core.kinds(leaf, p) if options.state_dtype else {}
    for name, x in slots.items():
        kind = kinds.get(name, Slot())
        choice = choose_format(options, name, x, kind, place_of(leaf.path, p))
        slots = slots | {name: formats.quantize_slot(x, choice, kind, empty.get(name, False))}
    if has_master(options.master_weights, p.dtype):
        slots[MASTER] = split_master(upcast(p), str(options.master_weights), p.dtype)[1]
    return slots


def choose_format(options: Options, name: str, x: Any, kind: Slot, place: Place) -> formats.Choice:
    """Choose the format of the slot `name`; `x` gives its shape and dtype, and `place` is that of its parameter."""
    place = place if len(place.shard) == len(x.shape) else place._replace(shard=x.shape)
    wanted = options.state_dtype
    requested = dict(wanted).get(name) if isinstance(wanted, tuple | dict) else wanted
    return formats.choose_format(x, requested, kind, place, lazy=options.sparse == "lazy")


def known_zeros(function: Callable[..., Any], *args: Any) -> Any:
    """Return for each array in the result of `function` whether it consists of zeros, whatever `args` are."""
    trace, structure = trace_of(function, *args)
    makers = {x: e for e in trace.equations for x in e.outputs}

    def is_zero(x: Any) -> bool:
        if isinstance(x, Constant):
            return not np.any(x.value)
        return x in makers and makers[x].name in COPIES and is_zero(makers[x].inputs[0])

    return jax.tree.unflatten(structure, [is_zero(x) for x in trace.outputs])


def dequantize(options: Options, stored: Stored, dtype: Any) -> tuple[Any, Slots]:
    """Convert a parameter and its slots to the `dtype` of the arithmetic. The parameter is its master weight."""
    slots = {name: formats.dequantize_slot(x, dtype) for name, x in stored.slots.items() if name != MASTER}
    if MASTER in stored.slots and stored.p is not None:
        return join_master(stored.p, stored.slots[MASTER], str(options.master_weights)), slots
    return upcast(stored.p), slots


def quantize_slots(leaf: Leaf, new: Slots, old: Slots, seeds: Seeds, watched: bool) -> Slots:
    """Convert the slots that the rule returned to the formats of `old`.

    Args:
        watched: NaN makes the scale of its block infinite, for a guard to see. The greatest element, as XLA computes
            it on a CPU, may leave NaN out.
    """

    def one(name: str, x: Array) -> Any:
        if watched and isinstance(old[name], Blocks):
            x = jnp.where(x != x, jnp.inf, x)
        return formats.quantize_like(x, old[name], lambda: seeds(leaf, name))

    return {name: one(name, x) for name, x in new.items()}


def draw_seeds(options: Options, leaves: Sequence[Leaf], slots: Sequence[Slots], step: Array) -> Seeds:
    """Return the random seeds of one step (`hash_rng`), as a function of a leaf and a slot; "" is the parameter.

    They are one array, made on first use, since XLA would compile hundreds of separate ones.

    Args:
        slots: the slots of each of `leaves`.
    """
    slot_names = dict.fromkeys(name for each in slots for name in each) | {"": None}
    names = [f"{leaf.path}/{name}" for name in slot_names for leaf in leaves]
    index = {name: i for i, name in enumerate(names)}
    everything = functools.cache(lambda: hash_rng.seeds(options.seed or 0, names, step))
    return lambda leaf, name: jax.lax.index_in_dim(everything(), index[f"{leaf.path}/{name}"], keepdims=False)
