"""The guard: a call with gradients that are not finite, or far greater than usual, changes nothing but a counter.

It decides once for all gradients, after the sum over devices and before accumulation. A bad call is therefore not added
to the sum of gradients, and the update waits for one more call.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.engine.stages.accumulate import without
from jaxopt_keras.engine.stages.branches import either
from jaxopt_keras.engine.stages.clip import global_norm

SKIPPED = "skipped"
USUAL = "usual_norm"
WINDOW = 100  # the length of the running mean of norms, in calls


def is_on(options: Any) -> bool:
    return options.skip_nonfinite or options.skip_spikes is not None


def init(options: Any) -> dict[str, Any]:
    """Return the counter of skipped calls, and the running mean of norms if there is a limit."""
    counter = {SKIPPED: jnp.zeros((), jnp.int32)} if is_on(options) else {}
    return counter if options.skip_spikes is None else counter | {USUAL: jnp.zeros((), jnp.result_type(float))}


def is_finite(grads: Any) -> Array:
    """Whether all floats in a tree are finite. The sum of x - x, 0 or NaN, is fused better than `isfinite`."""
    dtype = jnp.result_type(float)
    floats = [g for g in jax.tree.leaves(grads) if jnp.issubdtype(g.dtype, jnp.inexact)]
    return jnp.isfinite(sum((jnp.sum((g - g).real).astype(dtype) for g in floats), jnp.zeros((), dtype)))


def check_norm(factor: Any, grads: list[Any], usual: Array, step: Array) -> tuple[Array, Array]:
    """Return whether the joint norm of `grads` is at most `factor` times its running mean, and the new mean.

    A spike is added to the mean as the greatest norm that would have passed: a lasting change of scale is skipped for
    some calls, and then accepted. The first gradients always pass. NaN and infinity do not change the mean.
    """
    norm = global_norm([getattr(g, "values", g) for g in grads])
    finite = jnp.isfinite(norm)
    greatest = jnp.where(usual > 0, factor * usual, jnp.inf)
    seen = jnp.minimum(norm, greatest)
    rate = jnp.where(usual > 0, 1 / jnp.clip(step + 1, 1, WINDOW).astype(norm.dtype), 1)
    return finite & (norm <= greatest), jnp.where(finite, usual + rate * (seen - usual), usual)


def guarded(
    options: Any, hyper: Any, grads: list[Any], slots: Any, scalars: Any, step: Array, proceed: Any, idle: Any
) -> Any:
    """Run `proceed(slots, scalars)` if the gradients are good, else `idle(slots, scalars)`; update the guard's scalars.

    Both return `(output, slots, scalars)` of the same types.
    """
    if not is_on(options):
        return proceed(slots, scalars)
    own = {name: x for name, x in scalars.items() if name in (SKIPPED, USUAL)}
    others = without(scalars, *own)
    good = is_finite(grads)
    if USUAL in own:
        is_usual, own[USUAL] = check_norm(hyper["skip_spikes"], grads, own[USUAL], step)
        good = good & is_usual
    own[SKIPPED] = own[SKIPPED] + (~good).astype(jnp.int32)
    out, slots, others = either(good, lambda: proceed(slots, others), lambda: idle(slots, others))
    return out, slots, others | own
