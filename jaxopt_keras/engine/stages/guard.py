"""The guard: a call with gradients or results that are not finite, or far greater than usual, changes but a counter.

It decides once for all arrays, after the sum over devices and before accumulation. A call with bad gradients is
therefore not added to the sum of gradients, and the update waits for one more call. Where gradients are good and the
results of the step are not (`engine/probe.py`), a window of accumulation starts anew.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from jaxopt_keras.engine.given import EMPTY, FLUSH, WEIGHT
from jaxopt_keras.engine.probe import Probe, are_finite, stay_finite
from jaxopt_keras.engine.rows import Rows
from jaxopt_keras.engine.stages.accumulate import without
from jaxopt_keras.engine.stages.branches import branch, either
from jaxopt_keras.engine.stages.clip import global_norm
from jaxopt_keras.language.places import platform

SKIPPED = "skipped"
GRADIENTS = "gradients"  # a `skip_nonfinite` that looks at nothing else
USUAL = "usual_norm"
WINDOW = 100  # the length of the running mean of norms, in calls


class Guarded(NamedTuple):
    """The two ways of a call, of which a guard chooses one.

    Both are functions of slots and scalars, which return `(output, slots, scalars)` of the same types.

    Args:
        proceed: it also takes a flag: whether the gradients of this call count. None: they do.
        replaced: a function of slots and scalars: what the results of `proceed` replace, as a tree of `Before`.
        restart: a function of slots, scalars and a flag: returns slots and scalars in which, if the flag is set, a
            window of accumulation starts anew. The flag says that the gradients were good and the results were not:
            the same sum would give the same results again.
        plain: the same as `proceed`, in equations that can be computed twice; None: `proceed`.
        branches: whether `proceed` with a flag that is not set enters no branch, and changes nothing.
    """

    proceed: Callable[..., Any]
    idle: Callable[[Any, Any], Any]
    replaced: Callable[[Any, Any], Any]
    restart: Callable[[Any, Any, Array], tuple[Any, Any]]
    plain: Callable[..., Any] | None = None
    branches: bool = False


def is_on(options: Any) -> bool:
    return bool(options.skip_nonfinite) or options.skip_spikes is not None


def looks_at_results(options: Any) -> bool:
    return options.skip_nonfinite not in (False, GRADIENTS)


def of_groups(options: Iterable[Any]) -> Any:
    """Return the `skip_nonfinite` of a guard that decides for groups with these options: the strictest of them."""
    found = {x.skip_nonfinite for x in options}
    return True if True in found else GRADIENTS if GRADIENTS in found else False


def init(options: Any) -> dict[str, Any]:
    """Return the counter of skipped calls, and the running mean of norms if there is a limit."""
    counter = {SKIPPED: jnp.zeros((), jnp.int32)} if is_on(options) else {}
    return counter if options.skip_spikes is None else counter | {USUAL: jnp.zeros((), jnp.result_type(float))}


def is_finite(grads: Any) -> Array:
    """Whether all floats in a tree are finite. The reductions are those of a probe, with which they are fused."""
    floats = [g for g in jax.tree.leaves(grads) if jnp.issubdtype(g.dtype, jnp.inexact)]
    return ~functools.reduce(jnp.logical_or, [jnp.any(~are_finite(g)) for g in floats], jnp.zeros((), bool))


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


def guarded(options: Any, hyper: Any, grads: list[Any], slots: Any, scalars: Any, step: Array, run: Guarded) -> Any:
    """Run `run.proceed(slots, scalars)` if gradients and results are good, else `run.idle(slots, scalars)`.

    The guard's own scalars are updated. A call with a flush proceeds without bad gradients, to end its window.
    """
    if not is_on(options):
        return run.proceed(slots, scalars)
    own = {name: x for name, x in scalars.items() if name in (SKIPPED, USUAL)}
    others, fine, usual = without(scalars, *own), is_finite(grads), None
    if USUAL in own:
        is_usual, usual = check_norm(hyper["skip_spikes"], grads, own[USUAL], step)
        fine = fine & is_usual
    kept = (fine,) if FLUSH in hyper else ()
    counted, fine = fine, jnp.ones((), bool) if kept else fine
    proceed, refused = lambda: run.proceed(slots, others, *kept), jnp.zeros((), bool)
    eager: bool = jax.config.jax_disable_jit  # pyright: ignore[reportAttributeAccessIssue]  # made at run time
    if looks_at_results(options) and eager and not isinstance(fine, Tracer):
        if fine:  # nothing is overwritten, and code that is not compiled may be run only once
            results = proceed()
            refused = ~stay_finite(results, run.replaced(slots, others))
            fine, proceed = ~refused, lambda: results
    elif looks_at_results(options):
        probe = Probe(lambda: (run.plain or run.proceed)(slots, others, *kept))
        first = probe.first_results()
        refused = fine & ~probe.stays_finite(first, run.replaced(slots, others))
        fine = fine & ~refused
        proceed = proceed if run.plain else lambda: probe.results(first)
    own[SKIPPED] = own[SKIPPED] + (~(counted & fine) if kept else ~fine).astype(jnp.int32)
    if usual is not None:
        own[USUAL] = jnp.where(_says_nothing(hyper, refused), own[USUAL], usual)
    if run.branches and not kept and platform() == "tpu":  # not branches within a selection
        out, slots, others = run.proceed(slots, others, fine)
        return out, *run.restart(slots, others | own, refused)
    choose = branch if any(isinstance(g, Rows) for g in grads) else either  # a selection would read every row
    out, slots, others = choose(fine, proceed, lambda: run.idle(slots, others))
    return out, *run.restart(slots, others | own, refused)


def _says_nothing(hyper: Any, refused: Array) -> Array:
    """Whether a call says nothing of the usual norm: its results are refused, or it has no gradients."""
    if EMPTY in hyper:
        refused = refused | hyper[EMPTY]
    return refused | (hyper[WEIGHT] == 0) if WEIGHT in hyper else refused
