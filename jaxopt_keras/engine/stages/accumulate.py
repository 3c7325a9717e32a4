"""Gradient accumulation: one update for a window of several calls, with the mean of their gradients.

A window has as many calls as `gradient_accumulation_steps` says, or ends earlier by a flush. The update runs inside a
branch, so that the other calls cost one addition each.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.engine.given import EMPTY, FLUSH, read_weight
from jaxopt_keras.engine.stages.branches import branch
from jaxopt_keras.language.options import Options

SUM = "gradient_accumulator"  # of gradients, each times its weight if there are weights
MICRO_STEP = "micro_step"
WEIGHTS = "weight_accumulator"
LOSSES = "loss_accumulator"


def init(options: Options, slots: list[dict[str, Any]], scalars: dict[str, Any], params: list[Any], loss: bool) -> None:
    """Add the sums of gradients, and the scalars (`scalars`) before the first call."""
    for s, p in zip(slots, params, strict=True):
        s[SUM] = jnp.zeros_like(p)
    for name in scalar_names(options, loss):
        scalars[name] = jnp.zeros((), jnp.int32 if name == MICRO_STEP else jnp.result_type(float))


def scalar_names(options: Options, loss: bool) -> list[str]:
    """Return the names of the scalars: the calls since the last update, and the sums of weights and losses."""
    names = [MICRO_STEP, *([WEIGHTS] if options.weighted_accumulation else []), *([LOSSES] if loss else [])]
    return names if options.gradient_accumulation_steps else []


def window_length(options: Options, count: Any) -> Any:
    """Return the number of calls of the window after `count` updates: at least 1, and fractions are rounded up."""
    length: Any = options.gradient_accumulation_steps
    if not callable(length):
        return length
    number = jnp.ceil(jnp.asarray(length(count)).astype(jnp.result_type(float)))
    return jnp.where(number > 1, jnp.minimum(number, 2**30), 1).astype(jnp.int32)


def run_window(
    options: Options,
    hyper: dict[str, Any],
    count: Array,
    grads: list[Any],
    loss: Any,
    slots: list[dict[str, Any]],
    scalars: dict[str, Any],
    update: Any,
    idle: Any,
) -> Any:
    """Run `update(means, slots, scalars, mean loss)` on the last call of a window, else `idle(slots, scalars)`.

    Both return `((outputs, count), slots, scalars)` of the same types. A parameter without gradient in the last call is
    updated by the earlier gradients of the window; if there are none, or all are zeros, it does not change. A window
    without calls, or whose weights are all 0, has no update.
    """
    micro, new = scalars[MICRO_STEP], 1 - hyper[EMPTY].astype(jnp.int32) if EMPTY in hyper else 1
    weight = read_weight(hyper) if options.weighted_accumulation else None
    # Longer than `k`: in the middle of a longer window, of another kernel.
    first, last = micro == 0, micro + new >= window_length(options, count)
    if FLUSH in hyper:
        last = last | hyper[FLUSH]
    if weight is not None:
        grads = [None if g is None else g * weight.astype(g.real.dtype) for g in grads]
        loss = None if loss is None else loss * weight
    # The first call of a window overwrites the sum, outside of the `cond`: a reset inside would copy the array.
    sums = [
        jnp.where(first, 0 if g is None else g, s[SUM] if g is None else s[SUM] + g)
        for s, g in zip(slots, grads, strict=True)
    ]
    losses = None if loss is None else jnp.where(first, loss, scalars[LOSSES] + loss)
    weights = None if weight is None else jnp.where(first, weight, scalars[WEIGHTS] + weight)
    slots, scalars = [without(s, SUM) for s in slots], without(scalars, *scalar_names(options, loss is not None))

    def real() -> Any:
        mean = lambda s: s / (micro + new if weights is None else weights).astype(s.real.dtype)
        (out, count), new_slots, moved = update(list(map(mean, sums)), slots, scalars, jax.tree.map(mean, losses))
        (still, _), _, _ = idle(slots, scalars)
        for i, g in enumerate(grads):
            if g is None:
                choose = functools.partial(jnp.where, jnp.any(sums[i] != 0))
                out[i], new_slots[i] = jax.tree.map(choose, (out[i], new_slots[i]), (still[i], slots[i]))
        return (out, count), new_slots, moved

    updates = last
    if weights is not None:
        updates = last & (weights > 0)
    elif EMPTY in hyper:
        updates = last & (micro + new > 0)
    out, slots, scalars = branch(updates, real, lambda: idle(slots, scalars))
    slots = [s | {SUM: a} for s, a in zip(slots, sums, strict=True)]
    added = {} if losses is None else {LOSSES: losses}
    added |= {} if weights is None else {WEIGHTS: weights}
    return out, slots, scalars | {MICRO_STEP: jnp.where(last, 0, micro + new)} | added


def restarted(scalars: dict[str, Any], when: Array) -> dict[str, Any]:
    """Return the scalars; if `when`, as before the first call of a window."""
    if MICRO_STEP not in scalars:
        return scalars
    return scalars | {MICRO_STEP: jnp.where(when, 0, scalars[MICRO_STEP])}


def without(slots: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return a copy of the dict without some entries."""
    return {key: x for key, x in slots.items() if key not in names}
