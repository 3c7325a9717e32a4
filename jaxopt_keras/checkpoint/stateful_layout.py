"""The stateful face's state as one `State` that has the layout of the pure face's, and back.

A `MultiOptimizer` is laid out as a partition whose groups are its inner optimizers' numbers, a `LossScaleOptimizer` as
`loss_scaled`, a buffer of packed variables as the variables that lie in it.
"""

from typing import Any

import jax.numpy as jnp

from jaxopt_keras.checkpoint.names import STEP, cut, joined, transposed
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
    """The whole state; its arrays are the optimizer's own.

    Raises:
        ValueError: if the optimizer has no variables yet.
    """
    if not optimizer._paths:
        raise ValueError(f"{optimizer.name} must be built. Call `build(variables)` first.")
    optimizer.places()  # some counters are made when they are first listed
    return _laid_out(optimizer, lambda o: o._state)


def place_of(optimizer: Any) -> Place:
    """What a checkpoint is restored into: the state before the first step, with the present hyperparameters."""
    state_of(optimizer)  # which may refuse
    arrays = {path: {"": h.read()} for path, h in optimizer._handles.items()}
    params = _unpacked(optimizer, arrays)
    kernels = {group: o._kernel() for group, o in _groups(optimizer).items()}
    return Place(_laid_out(optimizer, _fresh), kernels, {path: x[""] for path, x in params.items()}, counted=True)


def put(optimizer: Any, state: State) -> None:
    """Makes `state` the optimizer's."""
    optimizer._put(_apart(optimizer, state))


def _groups(optimizer: Any) -> dict[str, Any]:
    """The plain optimizers inside, as `kernels.groups` names them."""
    if isinstance(optimizer, LossScaleOptimizer):
        return _groups(optimizer.inner_optimizer)
    if isinstance(optimizer, MultiOptimizer):
        return {str(i): o for i, o in enumerate(optimizer.optimizers)}
    return {"": optimizer}


def _laid_out(optimizer: Any, read: Any) -> State:
    """The state of all, where `read` gives that of one."""
    own = read(optimizer)
    if isinstance(optimizer, LossScaleOptimizer):
        inner = _laid_out(optimizer.inner_optimizer, read)
        return inner._replace(scalars=own.scalars | inner.scalars)
    if not isinstance(optimizer, Wrapper):
        return own._replace(slots=transposed(_unpacked(optimizer, transposed(own.slots))))
    states = [_laid_out(o, read) for o in optimizer._inner]
    hyper = {str(i): s.hyperparams for i, s in enumerate(states)}
    scalars = own.scalars | {str(i): s.scalars | {STEP: s.count} for i, s in enumerate(states)}
    by_path = [transposed(s.slots) for s in states]
    slots = {outer: by_path[owner].get(inner, {}) for outer, inner, owner in _names(optimizer)}
    return State(own.count, hyper, scalars, transposed(slots))


def _apart(optimizer: Any, state: State) -> Any:
    """The other way round: what `optimizer._put` takes."""
    own = optimizer._state
    if isinstance(optimizer, LossScaleOptimizer):
        mine = {n: state.scalars[n] for n in own.scalars}
        rest = {n: x for n, x in state.scalars.items() if n not in (SCALE, GOOD)}
        if SKIPPED in optimizer.inner_optimizer._state.scalars:  # then the counter is the inner one's
            mine[SKIPPED] = jnp.zeros((), jnp.int32)
        else:
            del rest[SKIPPED]
        return own._replace(scalars=mine), [_apart(optimizer.inner_optimizer, state._replace(scalars=rest))]
    if not isinstance(optimizer, Wrapper):
        return state._replace(slots=transposed(_repacked(optimizer, transposed(state.slots))))
    by_path = transposed(state.slots)
    found: list[dict[str, Any]] = [{} for _ in optimizer._inner]
    for outer, inner, owner in _names(optimizer):
        found[owner][inner] = by_path.get(outer, {})
    states = []
    for i, (o, slots) in enumerate(zip(optimizer._inner, found, strict=True)):
        scalars = dict(state.scalars[str(i)])
        hyper = state.hyperparams[str(i)]
        states.append(_apart(o, State(scalars.pop(STEP), hyper, scalars, transposed(slots))))
    return own._replace(count=state.count, scalars={n: state.scalars[n] for n in own.scalars}), states


def _names(optimizer: Any) -> list[tuple[str, str, int]]:
    """Of each variable of a `MultiOptimizer`: its path, what the inner optimizer calls it, and the number of that."""
    found = []
    for path, owner in optimizer._owners.items():
        inner = optimizer._key_inside(path) if path in optimizer._handles else path
        pieces = _pieces(path, optimizer._handles.get(path))
        found += [(part.path, part.path, owner) for part in pieces] or [(path, inner, owner)]
    return found


def _fresh(optimizer: Any) -> State:
    """One optimizer's own state before its first step. What only a user can make anew, such as hooks' slots, stays."""
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
    """The variables that lie in the buffer at `path`, if it is one."""
    buffer = getattr(handle, "variable", None)
    if not isinstance(buffer, Buffer):
        return []
    return [Part(span.path, path, tuple(span.shape)) for span in buffer.slices.values()]


def _unpacked(optimizer: Any, slots: dict[str, Any]) -> dict[str, Any]:
    """What is known of each variable by itself."""
    parts = [part for path, h in optimizer._handles.items() for part in _pieces(path, h)]
    buffers = {part.buffer for part in parts}
    rest = {path: kept for path, kept in slots.items() if path not in buffers}
    return rest | cut({path: slots.get(path, {}) for path in buffers}, parts)


def _repacked(optimizer: Any, slots: dict[str, Any]) -> dict[str, Any]:
    """The other way round."""
    parts = [part for path, h in optimizer._handles.items() for part in _pieces(path, h)]
    inside = {part.path for part in parts}
    rest = {path: kept for path, kept in slots.items() if path not in inside}
    return rest | joined(slots, {p: slots_of(optimizer._state, p) for p in {part.buffer for part in parts}}, parts)
