"""Slots that are packed between eager steps, where that is faster: dispatch costs more than arithmetic there."""

from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from jaxopt_keras.engine.native import unavailable
from jaxopt_keras.engine.stages.accumulate import SUM
from jaxopt_keras.language.options import Options
from jaxopt_keras.packing.slots import LARGE

FEW = 8  # arrays: with fewer there is nothing to gain
LOOSE = (SUM,)  # not packed: sums change in every call, and the other slots within a `cond`


def should_pack_slots(options: Options, params: list[Any], is_packed: bool) -> bool:
    """Whether the slots of `params` are to be packed after a step; `is_packed`: they are already."""
    if options.flat_state is not None:
        return options.flat_state
    if not is_packed and (len(params) < FEW or _is_slower(options)):
        return False
    try:
        alone = {type(p.sharding) for p in params} == {SingleDeviceSharding}
    except AttributeError:  # traced, or no arrays of JAX's
        return False
    return alone and (is_packed or any(1 < p.size <= LARGE for p in params))


def _is_slower(options: Options) -> bool:
    """Whether the step would unpack the slots and pack them again, since no native loop works within the buffer."""
    elsewhere = options.engine == "xla" or jax.default_backend() != "cpu" or bool(unavailable())
    return elsewhere or options.offload is not None or options.sparse == "lazy"
