"""Gradient accumulation: one update for k calls, with the mean of their gradients.

The update runs inside a `lax.cond`, so that the other k - 1 calls cost one addition each.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

SUM = "gradient_accumulator"
MICRO_STEP = "micro_step"


def init(slots: list[dict[str, Any]], scalars: dict[str, Any], params: list[Array]) -> None:
    """Add the sums of gradients, and the count of calls since the last update."""
    for s, p in zip(slots, params, strict=True):
        s[SUM] = jnp.zeros_like(p)
    scalars[MICRO_STEP] = jnp.zeros((), jnp.int32)


def run_every(
    k: int, grads: list[Any], slots: list[dict[str, Any]], scalars: dict[str, Any], update: Any, idle: Any
) -> Any:
    """Run `update(means, slots, scalars)` on every k-th call, and `idle(slots, scalars)` on the others.

    Both return `(output, slots, scalars)` of the same types. A parameter without gradient in the k-th call is not
    updated.
    """
    micro = scalars[MICRO_STEP]
    first, last = micro == 0, micro + 1 == k
    # The first call of a window overwrites the sum, outside of the `cond`: a reset inside would copy the array.
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


def without(slots: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return a copy of the dict without some entries."""
    return {key: x for key, x in slots.items() if key not in names}
