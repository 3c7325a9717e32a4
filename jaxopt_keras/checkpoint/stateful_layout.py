"""Conversion between the state of a stateful optimizer and one `State` in the layout of the pure face.

A `MultiOptimizer` has the layout of a partition whose groups are named 0, 1, ..., a `LossScaleOptimizer` that of
`loss_scaled`. Packed variables have the layout of unpacked ones.
"""

from typing import Any

import jax.numpy as jnp

from jaxopt_keras.checkpoint.names import STEP, pack, transposed, unpack
from jaxopt_keras.checkpoint.restore import Place
from jaxopt_keras.engine.programs.loss_scaled import GOOD, SCALE
from jaxopt_keras.engine.stages.guard import SKIPPED
from jaxopt_keras.engine.state import State
from jaxopt_keras.packing.trees import Part
from jaxopt_keras.pure.kernel import Kernel
from jaxopt_keras.stateful.loss_scale import LossScaleOptimizer
from jaxopt_keras.stateful.multi import MultiOptimizer
from jaxopt_keras.stateful.packed_variables import Buffer
from jaxopt_keras.stateful.state_views import slots_of, without_masked
from jaxopt_keras.stateful.wrappers import Wrapper


def state_of(optimizer: Any) -> State:
    """The state of the optimizer and of its inner ones; the arrays are not copied.

    Raises:
        ValueError: if the optimizer has no variables yet.
    """
    if not optimizer._paths:
        raise ValueError(f"{optimizer.name} must be built. Call `build(variables)` first.")
    optimizer.places()  # makes counters that are made when first listed
    return _merged(optimizer, lambda o: o._state)


def place_of(optimizer: Any) -> Place:
    """The target of a checkpoint: the state before the first step, with the current hyperparameters."""
    state_of(optimizer)  # raises if it is not built
    arrays = {path: {"": h.read()} for path, h in optimizer._handles.items()}
    params = _unpacked(optimizer, arrays)
    kernels = {group: o._kernel() for group, o in _groups(optimizer).items()}
    return Place(_merged(optimizer, _fresh), kernels, {path: x[""] for path, x in params.items()}, counted=True)


def put(optimizer: Any, state: State) -> None:
    """Sets the state of the optimizer and of its inner ones."""
    optimizer._put(_split(optimizer, state))


def _groups(optimizer: Any) -> dict[str, Any]:
    """The plain optimizers by group, named as in `kernels.groups`."""
    if isinstance(optimizer, LossScaleOptimizer):
        return _groups(optimizer.inner_optimizer)
    if isinstance(optimizer, MultiOptimizer):
        return {str(i): o for i, o in enumerate(optimizer.optimizers)}
    return {"": optimizer}


def _merged(optimizer: Any, read: Any) -> State:
    """One state out of the states of the optimizer and its inner ones; `read` returns that of one optimizer."""
    own = read(optimizer)
    if isinstance(optimizer, LossScaleOptimizer):
        inner = _merged(optimizer.inner_optimizer, read)
        return inner._replace(scalars=own.scalars | inner.scalars)
    if not isinstance(optimizer, Wrapper):
        return own._replace(slots=transposed(_unpacked(optimizer, transposed(own.slots))))
    states = [_merged(o, read) for o in optimizer._inner]
    hyper = {str(i): s.hyperparams for i, s in enumerate(states)}
    scalars = own.scalars | {str(i): s.scalars | {STEP: s.count} for i, s in enumerate(states)}
    by_path = [transposed(s.slots) for s in states]
    slots = {outer: by_path[owner].get(inner, {}) for outer, inner, owner in _names(optimizer)}
    return State(own.count, hyper, scalars, transposed(slots))


def _split(optimizer: Any, state: State) -> Any:
    """The states of the optimizer and its inner ones, as `optimizer._put` takes them; the inverse of `_merged`."""
    own = optimizer._state
    if isinstance(optimizer, LossScaleOptimizer):
        mine = {n: state.scalars[n] for n in own.scalars}
        rest = {n: x for n, x in state.scalars.items() if n not in (SCALE, GOOD)}
        if SKIPPED in optimizer.inner_optimizer._state.scalars:  # the inner optimizer counts
            mine[SKIPPED] = jnp.zeros((), jnp.int32)
        else:
            del rest[SKIPPED]
        return own._replace(scalars=mine), [_split(optimizer.inner_optimizer, state._replace(scalars=rest))]
    if not isinstance(optimizer, Wrapper):
        return state._replace(slots=transposed(_packed(optimizer, transposed(state.slots))))
    by_path = transposed(state.slots)
    found: list[dict[str, Any]] = [{} for _ in optimizer._inner]
    for outer, inner, owner in _names(optimizer):
        found[owner][inner] = by_path.get(outer, {})
    states = []
    for i, (o, slots) in enumerate(zip(optimizer._inner, found, strict=True)):
        scalars = dict(state.scalars[str(i)])
        hyper = state.hyperparams[str(i)]
        states.append(_split(o, State(scalars.pop(STEP), hyper, scalars, transposed(slots))))
    return own._replace(count=state.count, scalars={n: state.scalars[n] for n in own.scalars}), states


def _names(optimizer: Any) -> list[tuple[str, str, int]]:
    """For each variable of a `MultiOptimizer`: its path, its path in the inner optimizer, and the number of that."""
    found = []
    for path, owner in optimizer._owners.items():
        inner = optimizer._key_inside(path) if path in optimizer._handles else path
        pieces = _pieces(path, optimizer._handles.get(path))
        found += [(part.path, part.path, owner) for part in pieces] or [(path, inner, owner)]
    return found


def _fresh(optimizer: Any) -> State:
    """One optimizer's own state before its first step. Slots that the user's hooks made keep their values."""
    current = optimizer._state
    zero = jnp.zeros((), jnp.int32)
    if isinstance(optimizer, LossScaleOptimizer):
        scale = jnp.full((), optimizer.initial_scale, jnp.float32)
        return current._replace(scalars=current.scalars | {SCALE: scale, GOOD: zero, SKIPPED: zero})
    if isinstance(optimizer, Wrapper):
        return current._replace(count=zero, scalars=dict.fromkeys(current.scalars, zero))
    kernel: Kernel = optimizer._kernel()
    made = kernel.init({path: h.read() for path, h in optimizer._handles.items()})
    slots = current.slots | {
        name: current.slots.get(name, {}) | tree for name, tree in without_masked(made.slots).items()
    }
    return State(made.count, current.hyperparams, current.scalars | made.scalars, slots)


def _pieces(path: str, handle: Any) -> list[Part]:
    """The variables packed in the buffer at `path`; none if there is no buffer."""
    buffer = getattr(handle, "variable", None)
    if not isinstance(buffer, Buffer):
        return []
    return [Part(span.path, path, tuple(span.shape)) for span in buffer.slices.values()]


def _unpacked(optimizer: Any, slots: dict[str, Any]) -> dict[str, Any]:
    """Slots by path, with those of packed variables unpacked."""
    parts = [part for path, h in optimizer._handles.items() for part in _pieces(path, h)]
    buffers = {part.buffer for part in parts}
    rest = {path: kept for path, kept in slots.items() if path not in buffers}
    return rest | unpack({path: slots.get(path, {}) for path in buffers}, parts)


def _packed(optimizer: Any, slots: dict[str, Any]) -> dict[str, Any]:
    """Slots as the optimizer stores them, packed in buffers; the inverse of `_unpacked`."""
    parts = [part for path, h in optimizer._handles.items() for part in _pieces(path, h)]
    inside = {part.path for part in parts}
    rest = {path: kept for path, kept in slots.items() if path not in inside}
    return rest | pack(slots, {p: slots_of(optimizer._state, p) for p in {part.buffer for part in parts}}, parts)
