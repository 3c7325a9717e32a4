"""Packed slots: the small slots of a state in one buffer for each dtype, so that a step dispatches fewer arrays."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_keras.packing.trees import Packed, pack_some

LARGE = 65536  # elements: the dispatch of a larger array costs little compared with its memory traffic


def pack_slots(slots: Any, loose: tuple[str, ...] = ()) -> Packed:
    """Pack trees of slots. Large arrays, arrays of one element, empty ones and the slots named `loose` stay arrays."""

    def is_packed(key: Any, x: Any) -> bool:
        is_small = 1 < x.size <= LARGE and jnp.issubdtype(x.dtype, jnp.number)
        return is_small and not {getattr(k, "key", None) for k in key} & {*loose}

    return pack_some(slots, is_packed)


def pack_slots_eagerly(slots: Any, loose: tuple[str, ...] = ()) -> Packed:
    """Pack slots outside of `jit`: compiled, except on a CPU, where NumPy packs without a compilation."""
    if isinstance(slots, Packed):
        return slots
    return pack_slots(slots, loose) if jax.default_backend() == "cpu" else _pack_slots_jitted(slots, loose)


unpack_slots_eagerly = jax.jit(Packed.unpack)
_pack_slots_jitted = jax.jit(pack_slots, static_argnums=1)
