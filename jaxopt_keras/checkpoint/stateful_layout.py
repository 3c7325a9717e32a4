"""Conversion between the state of a stateful optimizer and the layout of checkpoints.

`Optimizer._joined` has the layout of the pure face: a `MultiOptimizer` that of a partition whose groups are named
0, 1, ..., a `LossScaleOptimizer` that of `loss_scaled`. Packed variables get the layout of unpacked ones here.
"""

import functools
from typing import Any

import jax.numpy as jnp

from jaxopt_keras.checkpoint.names import pack, transposed, unpack
from jaxopt_keras.checkpoint.restore import Place
from jaxopt_keras.engine.state import State
from jaxopt_keras.packing.parts import Part
from jaxopt_keras.stateful.packed_variables import Buffer
from jaxopt_keras.stateful.state_views import without_masked
from jaxopt_keras.stateful.wrappers import Wrapper


def state_of(optimizer: Any) -> State:
    """The state of the optimizer; the arrays are not copied.

    Raises:
        ValueError: if the optimizer has no variables yet.
    """
    if not optimizer._paths:
        raise ValueError(f"{optimizer.name} must be built. Call `build(variables)` first.")
    return _unpacked_state(optimizer, optimizer._state)


def place_of(optimizer: Any) -> Place:
    """The target of a checkpoint: the state before the first step, with the current hyperparameters."""
    state_of(optimizer)  # raises if it is not built
    params = _unpacked(optimizer, {path: {"": h.read()} for path, h in optimizer._handles.items()})
    kernels = {group: o._kernel() for group, o in optimizer._groups().items()}
    fresh = _unpacked_state(optimizer, _fresh(optimizer))
    functions = {group: o._sources.functions for group, o in optimizer._groups().items()}
    arrays = {path: x[""] for path, x in params.items()}
    return Place(fresh, kernels, arrays, functions, counted=True, group_of=functools.partial(_group_of, optimizer))


def _group_of(optimizer: Any, path: str) -> str:
    """The group name of a variable; "" without groups."""
    return next((name for name, plain in optimizer._groups().items() if name and path in plain._handles), "")


def put(optimizer: Any, state: State) -> None:
    """Sets the state of the optimizer."""
    packed = state._replace(slots=transposed(_packed(optimizer, transposed(state.slots))))
    optimizer._put(optimizer._separated(packed))


def _fresh(optimizer: Any) -> State:
    """The state before the first step. Slots that the user's hooks made keep their values."""
    current = optimizer._state
    if isinstance(optimizer, Wrapper):
        first = optimizer._first_state()
        scalars = dict.fromkeys(current.scalars, jnp.zeros((), jnp.int32)) | first.scalars
        return first._replace(scalars=scalars, slots=[_fresh(inner) for inner in optimizer._inner])
    made = optimizer._kernel().initial({path: h.read() for path, h in optimizer._handles.items()})
    slots = current.slots | {
        name: current.slots.get(name, {}) | tree for name, tree in without_masked(made.slots).items()
    }
    return State(made.count, current.hyperparams, current.scalars | made.scalars, slots)


def _unpacked_state(optimizer: Any, state: State) -> State:
    joined = optimizer._joined(state)
    return joined._replace(slots=transposed(_unpacked(optimizer, transposed(joined.slots))))


def _parts(optimizer: Any) -> list[Part]:
    """The variables that are packed in buffers."""
    return [
        part._replace(buffer=path)
        for plain in optimizer._groups().values()
        for path, h in plain._handles.items()
        if isinstance(h.variable, Buffer)
        for part in h.variable.parts.values()
    ]


def _unpacked(optimizer: Any, slots: dict[str, Any]) -> dict[str, Any]:
    """Slots by path, with those of packed variables unpacked."""
    parts = _parts(optimizer)
    buffers = {part.buffer for part in parts}
    rest = {path: kept for path, kept in slots.items() if path not in buffers}
    return rest | unpack({path: slots.get(path, {}) for path in buffers}, parts)


def _packed(optimizer: Any, slots: dict[str, Any]) -> dict[str, Any]:
    """Slots as the optimizer stores them, packed in buffers; the inverse of `_unpacked`."""
    parts = _parts(optimizer)
    inside = {part.path for part in parts}
    rest = {path: kept for path, kept in slots.items() if path not in inside}
    present = transposed(optimizer._joined(optimizer._state).slots)
    return rest | pack(slots, {part.buffer: present.get(part.buffer, {}) for part in parts}, parts)
