"""Choices between a step and no step, in the way that the platform does best.

XLA for a TPU lays a narrow array, such as 1,000,000 x 64, column by column, so that no place of a tile stays empty, but
inside a branch row by row: every array of a `lax.cond` would be turned around before it and back after it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.engine.native.ir import Constant, Trace, evaluate, trace_of
from jaxopt_keras.language.places import platform
from jaxopt_keras.storage.tiles import layout


def either(good: Array, proceed: Callable[[], Any], idle: Callable[[], Any]) -> Any:
    """Return `proceed()` if `good`, as it nearly always is, else `idle()`, which has results of the same types.

    On a TPU both are computed, and the kernel of the step selects one. Elsewhere a branch costs less than a selection.
    """
    if platform() != "tpu":
        return jax.lax.cond(good, proceed, idle)
    return jax.tree.map(lambda x, y: x if x is y else _select(good, x, y), proceed(), idle())


def _select(good: Array, x: Array, y: Array) -> Array:
    """Select numbers of 32 bits: XLA leaves selections of narrower ones out of the kernel of the step."""
    is_float = jnp.issubdtype(x.dtype, jnp.floating)
    wide = jnp.float32 if is_float else jnp.int32
    if x.dtype.itemsize >= 4 or not (is_float or jnp.issubdtype(x.dtype, jnp.integer)):
        return jnp.where(good, x, y)
    return jnp.where(good, x.astype(wide), y.astype(wide)).astype(x.dtype)


def branch(is_real: Array, real: Callable[[], Any], idle: Callable[[], Any]) -> Any:
    """Return `real()` or `idle()`, of which only one is computed.

    On a TPU the arrays in the branches are told to keep the layout that they have outside.
    """
    if platform() != "tpu":
        return jax.lax.cond(is_real, real, idle)
    traced = [trace_of(f) for f in (real, idle)]

    def inside(trace: Trace, operands: list[Array]) -> list[Array]:
        known = dict(zip(trace.constants, map(_as_outside, operands), strict=True))
        evaluate(trace.equations, known)
        return [_as_outside(jnp.asarray(x.value if isinstance(x, Constant) else known[x])) for x in trace.outputs]

    (first, structure), (second, _) = traced
    operands = [[*trace.constants.values()] for trace, _ in traced]
    out = jax.lax.cond(is_real, lambda a, b: inside(first, a), lambda a, b: inside(second, b), *operands)
    return jax.tree.unflatten(structure, out)


def _as_outside(x: Array) -> Array:
    if x.ndim < 2:
        return x
    from jax.experimental.layout import Layout, with_layout_constraint  # here, because few programs need it

    pair = layout(x.shape)
    return with_layout_constraint(x, Layout((*(i for i in range(x.ndim) if i not in pair), *pair)))
