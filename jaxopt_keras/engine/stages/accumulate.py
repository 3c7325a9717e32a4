"""Gradient accumulation: one update for k calls, with the mean of their gradients.

The update runs inside a branch, so that the other k - 1 calls cost one addition each.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.engine.stages.branches import branch

SUM = "gradient_accumulator"
MICRO_STEP = "micro_step"
LOSSES = "loss_accumulator"


def init(slots: list[dict[str, Any]], scalars: dict[str, Any], params: list[Array], losses: bool) -> None:
    """Add the sums of gradients, the count of calls since the last update and, with `losses`, the sum of the losses."""
    for s, p in zip(slots, params, strict=True):
        s[SUM] = jnp.zeros_like(p)
    scalars[MICRO_STEP] = jnp.zeros((), jnp.int32)
    if losses:
        scalars[LOSSES] = jnp.zeros((), jnp.result_type(float))


def scalars(losses: bool) -> list[str]:
    """Return the names of the scalars that `init` adds."""
    return [MICRO_STEP, LOSSES] if losses else [MICRO_STEP]


def run_every(
    k: int, grads: list[Any], slots: list[dict[str, Any]], scalars: dict[str, Any], update: Any, idle: Any, loss: Any
) -> Any:
    """Run `update(means, slots, scalars, mean loss)` on every k-th call, and `idle(slots, scalars)` on the others.

    Both return `((outputs, count), slots, scalars)` of the same types. A parameter without gradient in the k-th call is
    updated by the earlier gradients of the window; if there are none, or all are zeros, it does not change.
    """
    micro = scalars[MICRO_STEP]
    first, last = micro == 0, micro + 1 >= k  # greater: in the middle of a longer window, of another kernel
    # The first call of a window overwrites the sum, outside of the `cond`: a reset inside would copy the array.
    sums = [
        jnp.where(first, 0 if g is None else g, s[SUM] if g is None else s[SUM] + g)
        for s, g in zip(slots, grads, strict=True)
    ]
    losses = None if loss is None else jnp.where(first, loss, scalars[LOSSES] + loss)
    slots, scalars = [without(s, SUM) for s in slots], without(scalars, MICRO_STEP, LOSSES)

    def real() -> Any:
        mean = lambda s: s / (micro + 1).astype(s.real.dtype)
        (out, count), new, moved = update(list(map(mean, sums)), slots, scalars, jax.tree.map(mean, losses))
        (still, _), _, _ = idle(slots, scalars)
        for i, g in enumerate(grads):
            if g is None:
                choose = functools.partial(jnp.where, jnp.any(sums[i] != 0))
                out[i], new[i] = jax.tree.map(choose, (out[i], new[i]), (still[i], slots[i]))
        return (out, count), new, moved

    out, slots, scalars = branch(last, real, lambda: idle(slots, scalars))
    slots = [s | {SUM: a} for s, a in zip(slots, sums, strict=True)]
    added = {} if losses is None else {LOSSES: losses}
    return out, slots, scalars | {MICRO_STEP: jnp.where(last, 0, micro + 1)} | added


def restarted(scalars: dict[str, Any], when: Array) -> dict[str, Any]:
    """Return the scalars; if `when`, as before the first call of a window."""
    if MICRO_STEP not in scalars:
        return scalars
    return scalars | {MICRO_STEP: jnp.where(when, 0, scalars[MICRO_STEP])}


def without(slots: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return a copy of the dict without some entries."""
    return {key: x for key, x in slots.items() if key not in names}
