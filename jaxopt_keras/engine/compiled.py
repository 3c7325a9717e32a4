"""The jitted functions of programs, cached: programs with equal skeletons share compiled code."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_keras.engine.slot_sharding import ON_ONE_DEVICE
from jaxopt_keras.language.sparse import is_sparse
from jaxopt_keras.packing.trees import Packed


class Compiled:
    """The jitted functions of one program."""

    def __init__(self, program: Any) -> None:
        self.init = jax.jit(program.init)
        self.init_on_one_device = jax.jit(functools.partial(_init_on_one_device, program))
        self.update = jax.jit(functools.partial(narrow_update, program))
        self.update_wide = jax.jit(program.update)
        # Donated arguments have the order of the outputs: `jit` pairs buffers in that order, and would copy otherwise.
        self.step = jax.jit(program.step, static_argnames="reduce")
        self.step_donating = jax.jit(program.step, static_argnames="reduce", donate_argnums=(0, 1))
        self.averaged = jax.jit(program.averaged)


def _init_on_one_device(program: Any, params: Any, hyper: Any) -> Any:
    token = ON_ONE_DEVICE.set(True)
    try:
        return program.init(params, hyper)
    finally:
        ON_ONE_DEVICE.reset(token)


def narrow_update(program: Any, grads: Any, state: Any, params: Any, hyper: Any) -> Any:
    """Run `program.update`, and cast the amounts to the dtypes of the gradients, as optax's protocol requires."""
    deltas, state = program.update(grads, state, params, hyper)
    leaves, treedef = jax.tree.flatten(deltas, is_leaf=lambda x: x is None)
    given = treedef.flatten_up_to(grads) if not isinstance(grads, Packed) else jax.tree.leaves(grads)
    return treedef.unflatten([_cast(d, g) for d, g in zip(leaves, given, strict=True)]), state


def _cast(delta: Any, g: Any) -> Any:
    values = getattr(g, "values", getattr(g, "data", g)) if is_sparse(g) else g
    dtype = getattr(values, "dtype", None)
    is_float = dtype is not None and jnp.issubdtype(dtype, jnp.inexact)
    return delta.astype(dtype) if delta is not None and is_float else delta


_interned = functools.lru_cache(maxsize=4096)(Compiled)


def shared(program: Any) -> Compiled:
    """Return the jitted functions of a program, cached by equality."""
    try:
        return _interned(program)
    except TypeError:  # a rule with an unhashable field shares nothing
        return Compiled(program)
