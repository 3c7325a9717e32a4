"""The jitted functions of programs, cached: programs with equal skeletons share compiled code."""

import functools
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer, eval_context
from jax.sharding import NamedSharding

from jaxopt_keras.engine.slot_sharding import ON_ONE_DEVICE
from jaxopt_keras.engine.state_check import check_shards
from jaxopt_keras.language.places import Places
from jaxopt_keras.language.sparse import is_sparse
from jaxopt_keras.packing.trees import Packed


class Compiled:
    """The jitted functions of one program."""

    others: dict[Any, Any]  # functions of the same program that other modules have jitted, by their settings

    def __init__(self, program: Any) -> None:
        self.program, self.others = program, {}
        self.init = jax.jit(program.init)
        self.init_on_one_device = jax.jit(functools.partial(_init_on_one_device, program))
        step = functools.partial(jax.jit, program.step, static_argnames="reduce")
        self._ways = {
            "update": functools.partial(jax.jit, functools.partial(narrow_update, program)),
            "update_wide": functools.partial(jax.jit, program.update),
            # Donated arguments have the order of the outputs: `jit` pairs buffers in that order, and would copy
            # otherwise.
            "step": step,
            "step_donating": functools.partial(step, donate_argnums=(0, 1)),
        }
        self.update, self.update_wide, self.step, self.step_donating = (way() for way in self._ways.values())
        self.averaged = jax.jit(program.averaged)
        self.points = jax.jit(lambda *call: program.points(*call))

    def on(self, name: str, *kept: Any) -> Any:
        """Return the jitted function `name`, whose first results are new values of the trees `kept`, for their devices.

        Args:
            name: "step", "step_donating", "update" or "update_wide".
            kept: trees of arrays. None: a result of which nothing is known.
        """
        return self.placed(name, getattr(self, name), self._ways[name], kept)

    def placed(self, name: Any, plain: Any, jitted: Callable[..., Any], kept: tuple[Any, ...]) -> Any:
        """Return `plain`, or where arrays are split over devices, `jitted(out_shardings=...)`, which is cached.

        Left to itself, XLA splits results along automatic axes as it has split the work on them: they would not be
        written into the memory of their arguments, and the next step would be compiled anew for other arguments.
        """
        if jax.device_count() == 1 or (key := shardings_of(kept)) is None:
            return plain
        if (name, key) not in self.others:
            check_shards(*kept[:2])
            self.others[name, key] = jitted(out_shardings=key[1].unflatten(key[0]))
        return self.others[name, key]

    def init_at(self, places: Places) -> Any:
        """Return `init` for parameters that are split over devices, or on another platform than the default one."""
        if places not in self.others:
            self.others[places] = jax.jit(functools.partial(init_at, self.program, places))
        return self.others[places]


def shardings_of(trees: tuple[Any, ...]) -> tuple[tuple[Any, ...], Any] | None:
    """Return the shardings of the arrays in trees that are on a mesh, None for others, and the structure of the trees.

    None: no array of the first tree is on a mesh.
    """
    if not any(map(_is_on_mesh, jax.tree.leaves(next(tree for tree in trees if tree is not None)))):
        return None
    leaves, structure = jax.tree.flatten(trees, is_leaf=lambda x: x is None)
    return tuple(x.sharding if _is_on_mesh(x) else None for x in leaves), structure


def _is_on_mesh(x: Any) -> bool:
    return type(getattr(x, "sharding", None)) is NamedSharding and not isinstance(x, Tracer)


def init_at(program: Any, places: Places, params: Any, hyper: Any) -> Any:
    """Return `program.init(params, hyper)` for arrays at `places`."""
    with places.traced():
        return program.init(params, hyper)


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


def in_transformation() -> bool:
    """Whether a transformation of JAX (`grad`, `vmap`, `jit`, ...) is tracing.

    Arrays behind tracers belong to the caller of the transformation, so that they must not be donated.
    """
    return _trace_state() != _top_level()


def call_donating(donating: Any, plain: Any, *args: Any) -> Any:
    """Call `donating`; `plain`, the same without donation, where the caller may still read the arguments.

    That is in a transformation, and where an array occurs twice: tied parameters, gradients that are the parameters.
    """
    if not in_transformation() and not occurs_twice(args):
        try:
            return donating(*args)
        except (jax.errors.JaxRuntimeError, ValueError) as error:  # raised before anything runs
            if not any(part in str(error) for part in ("the same buffer twice", "donated in the same call")):
                raise
    return plain(*args)


def occurs_twice(tree: Any) -> bool:
    """Whether two arrays of `tree` have the same memory. False on a single device, where XLA raises an error itself.

    On several devices XLA crashes when it is donated one buffer twice.
    """
    if jax.device_count() == 1:
        return False
    found = [_memory(x) for x in jax.tree.leaves(tree) if isinstance(x, jax.Array) and x.size]
    return len({*found}) < len(found)


def _memory(x: Any) -> Any:
    """Return the address of an array, or the array's identity if it has none: a random key, a donated array."""
    try:
        return x.addressable_data(0).unsafe_buffer_pointer()
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return id(x), "no address"


def is_donated(x: Any) -> bool:
    """Whether `x` is an array that was donated to an earlier call, or deleted."""
    return isinstance(x, jax.Array) and not isinstance(x, Tracer) and x.is_deleted()


def _trace_state() -> Any:
    from jax.extend.core import get_opaque_trace_state  # here, because its import takes long

    return get_opaque_trace_state(convention="nnx")


@functools.cache
def _top_level() -> Any:
    with eval_context():
        return _trace_state()


_in_use: weakref.WeakValueDictionary[Any, Compiled] = weakref.WeakValueDictionary()


@functools.lru_cache(maxsize=64)
def _recent(program: Any) -> Compiled:
    """Keep the last ones for kernels that are made anew. Older ones are freed with the last kernel that has them."""
    found = _in_use.get(program)
    if found is None:
        _in_use[program] = found = Compiled(program)
    return found


def shared(program: Any) -> Compiled:
    """Return the jitted functions of a program, cached by equality."""
    try:
        return _recent(program)
    except TypeError:  # a rule with an unhashable field shares nothing
        return Compiled(program)
