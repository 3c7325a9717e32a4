"""Fresh slots lie on devices as their parameter does, although nothing in `zeros_like` tells the compiler so."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.engine.core import Slots
from jaxopt_keras.language.rule import Slot
from jaxopt_keras.storage.blockwise import Blocks

_on_one_device = contextvars.ContextVar("on_one_device", default=False)


@contextlib.contextmanager
def on_one_device() -> Iterator[None]:
    """While a program is traced for arrays that are known to be on one device each: nothing is to be sharded."""
    token = _on_one_device.set(True)
    try:
        yield
    finally:
        _on_one_device.reset(token)


def shard_like(slots: Slots, p: Array, kinds: dict[str, Slot]) -> Slots:
    """`slots`, with the sharding of the axes of `p` that each of them keeps. Without a mesh they stay as they are."""
    if _on_one_device.get() or any(
        jax.typeof(p).sharding.spec
    ):  # of explicit axes: then it is a part of the types, and has come along
        return slots
    return {name: _shard_slot_like(x, p, kinds.get(name, Slot())) for name, x in slots.items()}


def _shard_slot_like(x: Any, p: Array, kind: Slot) -> Any:
    x, p = jax.lax.optimization_barrier((x, p))  # else zeros of one shape were one array, and all tied together
    if isinstance(x, Blocks):  # scales lie where their codes do, as far as whole blocks do
        return jax.tree.map(
            lambda part: _tie_sharding(part, p if part.shape == p.shape else p.sum(-1, keepdims=True)), x
        )
    if kind.lacks:
        p = p.sum(kind.lacks)
    return _tie_sharding(x, p) if isinstance(x, Array) and x.ndim == p.ndim else x


def _tie_sharding(x: Array, p: Array) -> Array:
    if x.shape != p.shape:
        if p.shape != (*x.shape[:-1], 1):
            return x
        p = jnp.broadcast_to(p, x.shape)
    if p.ndim == 0:
        return x
    # A choice that the compiler does not see through until it has spread shardings over elementwise operations.
    never = jax.lax.optimization_barrier(jnp.zeros((), bool))
    return jax.lax.select(never, (p if jnp.iscomplexobj(x) else p.real).astype(x.dtype), x)
