"""Where slots lie between two steps: in one buffer where that is faster."""

from collections.abc import Collection
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from jaxopt_keras.engine.native import unavailable
from jaxopt_keras.engine.pipeline import LOOSE
from jaxopt_keras.engine.state import Resting, State
from jaxopt_keras.language.options import Options
from jaxopt_keras.packing.slots import LARGE, flat

FEW = 8  # arrays: below, there is nothing to gain


def rests(options: Options, params: Collection[Any], state: State) -> bool:
    """Whether the slots of these arrays are to lie in one buffer after a step from `state`."""
    if options.flat_state is not None:
        return options.flat_state
    if state.held is None and (len(params) < FEW or _is_slower(options)):
        return False
    try:
        alone = {type(p.sharding) for p in params} == {SingleDeviceSharding}
    except AttributeError:  # traced, or no arrays of JAX's
        return False
    return alone and (state.held is not None or any(1 < p.size <= LARGE for p in params))


def _is_slower(options: Options) -> bool:
    """Whether the step would take slots out of their buffer and put them back, since no loop works within it."""
    elsewhere = options.engine == "xla" or jax.default_backend() != "cpu" or bool(unavailable())
    return elsewhere or options.offload is not None or options.sparse == "lazy"


def together(state: State) -> State:
    """A state as a step takes it whose slots are to rest."""
    held = state.held
    if held is None:  # on a CPU NumPy puts them together, and nothing is compiled for the once
        held = (flat if jax.default_backend() == "cpu" else _jitted)(state.slots, apart=LOOSE)
    return state._replace(slots=held)


def resting(state: State) -> State:
    """What such a step returned."""
    return state._replace(slots=Resting(state.slots))


_jitted = jax.jit(flat, static_argnames="apart")
