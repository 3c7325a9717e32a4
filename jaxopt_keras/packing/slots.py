"""Packed slots: the slots of a state in a few buffers for each dtype, so that a step dispatches fewer arrays."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_keras.packing.trees import Form, Packed, pack_some

LARGE = 65536  # elements: on a CPU the dispatch of a larger array costs little compared with its memory traffic
MOST = 2**28  # bytes of a buffer on a GPU: buffers are packed and unpacked one by one, so that no more is there twice
UNIT = 128  # bytes: a line of a GPU's cache


def small() -> Form:
    """The form for CPUs: small arrays, in one buffer for each dtype."""
    return Form(largest=LARGE)


def whole() -> Form:
    """The form for GPUs: arrays of any size in buffers of a limited size, each where accesses of 16 bytes are fast."""
    return Form(most=MOST, unit=UNIT)


def pack_slots(slots: Any, loose: tuple[str, ...] = (), form: Form | None = None) -> Packed:
    """Pack trees of slots. Arrays of one element, empty ones and the slots named `loose` stay arrays.

    Args:
        form: which arrays are packed, and how. None: `small()`.
    """
    form = form or small()

    def is_packed(key: Any, x: Any) -> bool:
        is_array = 1 < x.size <= form.elements(x) and jnp.issubdtype(x.dtype, jnp.number)
        return is_array and not {getattr(k, "key", None) for k in key} & {*loose}

    return pack_some(slots, is_packed, form)


def packing(slots: Any, loose: tuple[str, ...], form: Form) -> Iterator[Packed]:
    """Yield the slots with one more buffer packed each time, compiled; the last ones are those of `pack_slots`.

    A caller that keeps only the last ones has one buffer twice in memory, not all of them. On a CPU NumPy packs at
    once, without a compilation.
    """
    if jax.default_backend() == "cpu":
        yield pack_slots(slots, loose, form)
        return
    end = jax.eval_shape(functools.partial(pack_slots, loose=loose, form=form), slots).arrangement
    slots = Packed.of_loose(slots)
    for name in end.pieces:
        slots = slots.tightened(name, end)
        yield slots


def unpacking(slots: Packed) -> Iterator[Packed]:
    """Yield the slots with one more buffer unpacked each time, likewise."""
    for name in slots.arrangement.pieces:
        slots = slots.loosened(name)
        yield slots
