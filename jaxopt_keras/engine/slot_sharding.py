"""Sharding of fresh slots like their parameter, of which `zeros_like` tells the compiler nothing."""

import contextvars
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import get_abstract_mesh

from jaxopt_keras.engine.core import Slots
from jaxopt_keras.language.rule import Slot
from jaxopt_keras.storage.blockwise import Blocks, quantize

# Whether a program is traced for arrays that are on one device each: `shard_like` then does nothing.
ON_ONE_DEVICE = contextvars.ContextVar("on_one_device", default=False)


def shard_like(slots: Slots, p: Array, kinds: dict[str, Slot]) -> Slots:
    """Shard each slot like the axes of `p` that it keeps. Without a mesh the slots do not change."""
    if ON_ONE_DEVICE.get():
        return slots
    # With explicit axes the sharding is part of the types, and `zeros_like` has copied it: that is enough in a mesh.
    # The barrier makes the program use `p`, whose devices are the program's if the mesh has none.
    if any(jax.typeof(p).sharding.spec) and get_abstract_mesh().axis_names:
        return jax.lax.optimization_barrier((slots, p))[0]
    return {name: _shard_slot_like(x, p, kinds.get(name, Slot())) for name, x in slots.items()}


def _shard_slot_like(x: Any, p: Array, kind: Slot) -> Any:
    # Without the barrier, all zeros of one shape would be one array, with one sharding.
    x, p = jax.lax.optimization_barrier((x, p))
    if not isinstance(x, Array | Blocks):
        return x
    if kind.lacks:
        p = p.sum(kind.lacks)
    if kind.resized and len(x.shape) == p.ndim:
        p = jnp.broadcast_to(p.sum(kind.resized, keepdims=True), x.shape)
    if len(x.shape) == p.ndim + 1 and x.shape[1:] == p.shape:  # a stack of such arrays
        p = jnp.broadcast_to(p[None], x.shape)
    if not isinstance(x, Blocks):
        return _tie_sharding(x, p) if x.ndim == p.ndim else x
    if x.shape != p.shape:
        return x
    if x.tiles:  # scales are sharded like their codes
        return jax.tree.map(_tie_sharding, x, quantize(p.astype(x.dtype), x.code, tiles=x.tiles))
    return jax.tree.map(lambda part: _tie_sharding(part, p if part.shape == p.shape else p.sum(-1, keepdims=True)), x)


def _tie_sharding(x: Array, p: Array) -> Array:
    if x.shape != p.shape:
        if p.shape != (*x.shape[:-1], 1):
            return x
        p = jnp.broadcast_to(p, x.shape)
    if p.ndim == 0:
        return x
    # The compiler removes this select only after it has propagated shardings through elementwise operations.
    never = jax.lax.optimization_barrier(jnp.zeros((), bool))
    return jax.lax.select(never, (p if jnp.iscomplexobj(x) else p.real).astype(x.dtype), x)
