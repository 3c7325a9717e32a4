"""The step of an array as one kernel of XLA's on a TPU.

XLA makes one kernel of computations that read each other's results. Those that do not it often leaves apart: each then
reads the same arrays again, or one writes a float32 array for the other. So the new parameter reads its new slots here,
in a way that changes no bit of it: x & (x | y) is x.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.engine.core import Core, Layout, Slots
from jaxopt_keras.engine.rows import Rows
from jaxopt_keras.engine.state import State
from jaxopt_keras.language.places import platform
from jaxopt_keras.language.sparse import is_sparse
from jaxopt_keras.packing.trees import Packed, unpacked


def in_one_kernel(core: Core, layout: Layout, gradients: list[Any], out: list[Any], slots: list[Slots]) -> list[Any]:
    """Return `out`, the new parameters, each of which on a TPU reads its new slots where the rule is element-wise.

    Of a sparse gradient, and without one, most of the array does not change, and is not read either.
    """
    if platform() != "tpu":
        return out
    dense = [g is not None and not isinstance(g, Rows) for g in gradients]
    some = [d and core.is_elementwise(leaf, p) for leaf, p, d in zip(layout.leaves, out, dense, strict=True)]
    return [_reading(p, s) if one else p for p, s, one in zip(out, slots, some, strict=True)]


def joined(program: Any, out: Any, state: State, grads: Any) -> Any:
    """Return the new parameters of a `pipeline.Program` that a guard around several programs has selected."""
    if platform() != "tpu" or isinstance(out, Packed) or program.options.gradient_accumulation_steps:
        return out
    layout, new = Layout.read(out, program.options)
    gradients = [None if is_sparse(g) else g for g in layout.flatten(grads, "grads")]
    new = in_one_kernel(program.core, layout, gradients, new, layout.by_leaf(unpacked(state.slots)))
    return layout.unflatten(new, layout.frozen_leaves())


def _reading(x: Array, slots: Slots) -> Array:
    read = [y for y in jax.tree.leaves(slots) if y.shape == x.shape and _fits(y)]
    if not read or not _fits(x):
        return x
    pattern = _pattern(x)
    for y in read:
        pattern = pattern & (pattern | _pattern(y))
    return jax.lax.bitcast_convert_type(pattern, jnp.float32).astype(x.dtype)


def _fits(x: Array) -> bool:
    return x.ndim > 0 and not jnp.iscomplexobj(x) and x.dtype.itemsize <= 4


def _pattern(x: Array) -> Array:
    """Return 32 bits for each number, others for another number."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(jnp.int32)
    return jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
