"""Gradient accumulation: one update for k calls, with the mean of their gradients.

The update sits inside a `lax.cond`, so that the other k - 1 calls cost an addition each and no optimizer arithmetic.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

SUM = "gradient_accumulator"
MICRO_STEP = "micro_step"


def init(slots: list[dict[str, Any]], scalars: dict[str, Any], params: list[Array]) -> None:
    """Adds the sums and the count of calls since the last update."""
    for s, p in zip(slots, params, strict=True):
        s[SUM] = jnp.zeros_like(p)
    scalars[MICRO_STEP] = jnp.zeros((), jnp.int32)


def run_every(
    k: int,
    grads: list[Any],
    slots: list[dict[str, Any]],
    scalars: dict[str, Any],
    update: Callable[..., Any],
    idle: Callable[..., Any],
) -> Any:
    """`update(means, slots, scalars)` on every k-th call, `idle(slots, scalars)` on the others.

    Both return `(anything, slots, scalars)` of the same types. A parameter without gradient in the k-th call is not
    updated.
    """
    micro = scalars[MICRO_STEP]
    first, last = micro == 0, micro + 1 == k
    # A sum starts anew instead of being reset, and outside the `cond`: so it is one addition in place, and no copy.
    sums = [
        jnp.where(first, 0 if g is None else g, s[SUM] if g is None else s[SUM] + g)
        for s, g in zip(slots, grads, strict=True)
    ]
    slots, scalars = [without(s, SUM) for s in slots], without(scalars, MICRO_STEP)

    def real() -> Any:
        return update([None if g is None else s / k for g, s in zip(grads, sums, strict=True)], slots, scalars)

    out, slots, scalars = jax.lax.cond(last, real, lambda: idle(slots, scalars))
    slots = [s | {SUM: a} for s, a in zip(slots, sums, strict=True)]
    return out, slots, scalars | {MICRO_STEP: jnp.where(last, 0, micro + 1)}


def without(slots: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: x for key, x in slots.items() if key != name}
