"""Guards: a call whose gradients are not finite, or far greater than usual, changes nothing but a counter.

The decision is taken once, from all gradients as they are after the sum over devices, and before accumulation: a bad
micro-step does not get into the sum, and its window waits for one more call.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.engine.stages.clip import global_norm

SKIPPED = "skipped"
USUAL = "usual_norm"
WINDOW = 100  # calls that the running mean of norms looks back on


def is_on(options: Any) -> bool:
    return options.skip_nonfinite or options.skip_spikes is not None


def init(options: Any, scalars: dict[str, Any]) -> None:
    """Adds the counter, and the running mean of norms where there is a limit."""
    if is_on(options):
        scalars[SKIPPED] = jnp.zeros((), jnp.int32)
    if options.skip_spikes is not None:
        scalars[USUAL] = jnp.zeros((), jnp.result_type(float))


def without_counter(scalars: dict[str, Any]) -> dict[str, Any]:
    return {name: x for name, x in scalars.items() if name != SKIPPED}


def is_finite(grads: Any) -> Array:
    """Whether all floats in a tree are finite. A sum of x - x is 0 or NaN, and fuses better than `isfinite`."""
    dtype = jnp.result_type(float)
    floats = [g for g in jax.tree.leaves(grads) if jnp.issubdtype(g.dtype, jnp.inexact)]
    return jnp.isfinite(sum((jnp.sum((g - g).real).astype(dtype) for g in floats), jnp.zeros((), dtype)))


def watched(factor: Any, grads: list[Any], usual: Array, step: Array) -> tuple[Array, Array]:
    """Whether the norm of all `grads` is at most `factor` times its running mean, and the new mean.

    A spike enters the mean as the greatest norm that would have passed: so a change of scale that lasts is skipped for
    a while, and then taken. The first gradients pass whatever they are. Of NaN or infinity the mean learns nothing.
    """
    norm = global_norm([getattr(g, "values", g) for g in grads])
    finite = jnp.isfinite(norm)
    greatest = jnp.where(usual > 0, factor * usual, jnp.inf)
    seen = jnp.minimum(norm, greatest)
    rate = jnp.where(usual > 0, 1 / jnp.clip(step + 1, 1, WINDOW).astype(norm.dtype), 1)
    return finite & (norm <= greatest), jnp.where(finite, usual + rate * (seen - usual), usual)


def guarded(
    options: Any,
    hyper: dict[str, Any],
    grads: list[Any],
    slots: Any,
    scalars: dict[str, Any],
    step: Array,
    proceed: Callable[..., Any],
    idle: Callable[..., Any],
) -> Any:
    """`proceed(slots, scalars)` where the gradients are good, else `idle(slots, scalars)`; the guard's own are added.

    Both return `(anything, slots, scalars)` of the same types.
    """
    if not is_on(options):
        return proceed(slots, scalars)
    mine = {name: x for name, x in scalars.items() if name in (SKIPPED, USUAL)}
    rest = {name: x for name, x in scalars.items() if name not in mine}
    good = is_finite(grads)
    if USUAL in mine:
        usual, mine[USUAL] = watched(hyper["skip_spikes"], grads, mine[USUAL], step)
        good = good & usual
    mine[SKIPPED] = mine[SKIPPED] + (~good).astype(jnp.int32)
    out, slots, rest = jax.lax.cond(good, lambda: proceed(slots, rest), lambda: idle(slots, rest))
    return out, slots, rest | mine
