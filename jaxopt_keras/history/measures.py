"""Measures of one step, computed inside the compiled step; with native loops, in the same pass over memory."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxopt_keras.engine import rows
from jaxopt_keras.engine.compiled import call_donating
from jaxopt_keras.engine.gradients import unscaled
from jaxopt_keras.engine.pipeline import Program
from jaxopt_keras.engine.programs.loss_scaled import SCALE, LossScaled
from jaxopt_keras.engine.programs.partitioned import STEP, Partitioned, Tree
from jaxopt_keras.engine.stages.guard import SKIPPED
from jaxopt_keras.language.numerics import compute_dtype, norm
from jaxopt_keras.language.paths import first_match, leaves_by_path
from jaxopt_keras.language.sparse import densify, is_sparse, rows_of
from jaxopt_keras.packing.trees import Packed, unpacked
from jaxopt_keras.pure.arguments import check_kernel
from jaxopt_keras.pure.kernel import Kernel

Measures = dict[str, Array]
Groups = Mapping[str, str]  # name of a group -> regular expression, searched for in paths

RATE = "learning_rate"
GRADIENT = "gradient_norm"
NORMS = (GRADIENT, "update_norm", "weight_norm", "update_ratio")


def measure(old_params: Any, new_params: Any, grads: Any, *, groups: Groups | None = None) -> Measures:
    """Computes the norms of one step, for use inside `jit`.

        gradient_norm  |g|           update_norm   |new - old|
        weight_norm    |old|         update_ratio  |new - old| / |old|, NaN where |old| is 0

    Args:
        old_params, new_params: the trees before and after the step.
        grads: a tree like them, before clipping, as the step takes it. Leaves may be None, `IndexedSlices` or BCOO.
        groups: `{name: regular expression}`: also computes the norms of the parameters whose path matches, as
            `gradient_norm/name`. Default: None, no groups.

    Returns:
        0-d arrays by name, float32 (float64 under x64). Each leaf is read once, even if it is in several groups.

    For the step of a kernel, `measured_step` costs less.

    Raises:
        ValueError: for a group without parameters. TypeError: if `groups` is no mapping to strings.

    >>> old, new = {"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([3.0, 3.5])}
    >>> {name: float(x) for name, x in measure(old, new, {"w": jnp.array([0.0, 2.0])}).items()}
    {'gradient_norm': 2.0, 'update_norm': 0.5, 'weight_norm': 5.0, 'update_ratio': 0.1}
    """
    groups = checked_groups(groups)
    if isinstance(old_params, Packed) and groups:
        old_params, new_params, grads = map(unpacked, (old_params, new_params, grads))
    elif isinstance(old_params, Packed) and not isinstance(grads, Packed):
        grads = old_params.like(grads)
    others = map(jax.tree.structure(old_params).flatten_up_to, (new_params, grads))
    norms = {
        path: [_norm(_dense(g, p)), _norm(_widened(q) - _widened(p)), _norm(p)]
        for (path, p), q, g in zip(leaves_by_path(old_params), *others, strict=True)
        if jnp.issubdtype(jnp.result_type(p), jnp.inexact)
    }
    paths = [*norms]
    members = {"": paths} | {f"/{name}": matching(name, pattern, paths) for name, pattern in groups.items()}
    found = {}
    for suffix, group in members.items():
        g, u, w = (norm(jnp.array([norms[path][i] for path in group], jnp.result_type(float))) for i in range(3))
        ratio = jnp.where(w > 0, u / jnp.where(w > 0, w, 1), jnp.nan)
        found |= {f"{name}{suffix}": x for name, x in zip(NORMS, (g, u, w, ratio), strict=True)}
    return found


def measured_step(
    kernel: Kernel,
    params: Any,
    state: Any,
    grads: Any,
    *,
    norms: bool = True,
    groups: Groups | None = None,
    donate: bool = True,
    **extra: Any,
) -> tuple[Any, Any, Measures]:
    """`kernel.step` with measures of the step: returns `(params, state, measures)`. Works inside and outside `jit`.

    Args:
        kernel: any kernel.
        params, state, grads: as in `Kernel.step`.
        norms: False leaves out the norms, the only measures with a cost: for example `norms=i % 100 == 0`. A Python
            bool, default True; inside your own `jit`, make it a static argument.
        groups: as in `measure`.
        donate, **extra: as in `Kernel.step`.

    Returns:
        New `params` and `state`, and 0-d arrays: those of `measure`; `step`, the number of updates so far;
        `learning_rate`, if the kernel knows it (`learning_rate/group` for each group of a partition); `skipped`, if
        the kernel has a guard. `gradient_norm` is that of the gradient after the sum over `axis_name`, divided by the
        loss scale, and before clipping.

    Raises:
        TypeError, ValueError: as in `Kernel.step` and `measure`; TypeError if `norms` is no bool.
    """
    check_kernel("kernel", kernel)
    if not isinstance(norms, bool | np.bool_):
        raise TypeError(
            f"`norms` must be True or False when the step is compiled. Received: norms={norms!r}. Inside your own "
            "`jit`, make it a static argument."
        )
    hyper = kernel.given(state, extra)
    settings, jitted = (bool(norms), tuple(checked_groups(groups).items())), kernel.compiled.others
    if settings not in jitted:
        step = functools.partial(_step, program=kernel.skeleton, norms=settings[0], groups=dict(settings[1]))
        ways = functools.partial(jax.jit, step, donate_argnums=(0, 1)), functools.partial(jax.jit, step)
        jitted[settings] = [(way, way()) for way in ways]
    kept = params, state._replace(hyperparams={}), None
    of = kernel.compiled.placed
    donating, plain = (of((settings, i), run, way, kept) for i, (way, run) in enumerate(jitted[settings]))
    run = functools.partial(call_donating, donating, plain) if donate else plain
    new, moved, found = run(params, state._replace(hyperparams={}), grads, hyper)
    return new, kernel.keep(state.hyperparams, moved), found


def _step(params: Any, state: Any, grads: Any, hyper: Any, program: Any, norms: bool, groups: Groups) -> Any:
    """The step and its measures as one program; with native loops, one pass over memory."""
    plain = isinstance(program, Program)

    def measured(params: Any, state: Any, grads: Any, hyper: Any) -> Any:
        new, moved = (program.bare_step if plain else program.step)(params, state, grads, hyper)
        if not norms:
            return new, moved, {}
        raw = _raw_gradients(program, params, state, grads, hyper)
        return new, moved, measure(params, new, raw, groups=groups)

    rates = _rates(program, state, hyper)
    params, state, found = (program.on_engine(measured) if plain else measured)(params, state, grads, hyper)
    found |= rates | {"step": state.count} | {n: x for n, x in state.scalars.items() if n == SKIPPED}
    # Copies, because the next step donates the state.
    return params, state, jax.tree.map(jnp.copy, found)


def _raw_gradients(program: Any, params: Any, state: Any, grads: Any, hyper: dict[str, Any]) -> Any:
    """The gradients before clipping: summed over the mapped axis and divided by the loss scale."""
    if isinstance(program, Partitioned):
        tree = Tree(program, params)
        states, hypers = tree.separated(state).slots, [hyper[name] for name in program.names]
        trees = program.children, tree.split(params), states, tree.split(grads), hypers
        return tree.unpacked([_raw_gradients(*x) for x in zip(*trees, strict=True)])
    if isinstance(program, LossScaled):
        grads = unscaled(grads, state.scalars[SCALE])
    if hasattr(program, "inner"):
        return _raw_gradients(program.inner, params, state, grads, hyper)
    (summed, _), scale = program.summed(params, grads, hyper), hyper.get("loss_scale_factor")
    return summed if scale is None else unscaled(summed, scale)


def _rates(program: Any, state: Any, hyper: dict[str, Any]) -> Measures:
    """The learning rates of a step, if they are known."""
    if isinstance(program, Partitioned):
        found = {}
        for name, part in program.groups.items():
            own = state._replace(count=state.scalars[name][STEP])  # a group that accumulates has made fewer updates
            found |= {f"{RATE}/{name}": x for x in _rates(part, own, hyper[name]).values()}
        return found
    if hasattr(program, "inner"):
        return _rates(program.inner, state, hyper)
    hyper = program.at(hyper, state.count)
    return {RATE: hyper[RATE]} if RATE in hyper else {}


def _dense(g: Any, p: Any) -> Any:
    """A gradient as an array with the same norm; None if there is no gradient."""
    if g is None or getattr(g, "dtype", None) == jax.dtypes.float0:
        return None
    if is_sparse(g):
        slices = rows_of(g)
        return densify(g, p.shape) if slices is None else rows.merge(slices, p.shape).values
    return jnp.asarray(g)


def checked_groups(groups: Any) -> dict[str, str]:
    """`groups` as a dict; raises a TypeError if it is no mapping to strings."""
    found = {} if groups is None else groups
    bad = (
        [f"{n!r}: {x!r}" for n, x in found.items() if not isinstance(x, str)] if isinstance(found, Mapping) else [found]
    )
    if bad:
        raise TypeError(f"`groups` must map names to regular expressions. Received: {bad[0]}")
    return dict(found)


def matching(name: str, pattern: str, paths: list[str]) -> list[str]:
    """The paths in a group; raises a ValueError if there are none."""
    found = [path for path in paths if first_match([pattern], path) is not None]
    if not found:
        raise ValueError(f"The group {name!r} has no parameter: {pattern!r} matches none of the paths {paths}")
    return found


def _widened(x: Any) -> Array:
    x = jnp.asarray(x)
    return x.astype(compute_dtype(x.dtype))


def _norm(x: Any) -> Array:
    """The norm of an array; 0 without a gradient."""
    dtype = jnp.result_type(float)
    return jnp.zeros((), dtype) if x is None else norm(_widened(x), dtype=dtype)
