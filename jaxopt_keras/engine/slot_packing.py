"""Decisions on packed arrays: whether slots are packed between eager steps, whether parameters stay packed in a step.

Slots are packed where that is faster: where dispatch costs more than arithmetic.
"""

from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from jaxopt_keras.engine.core import Core
from jaxopt_keras.engine.native import unavailable
from jaxopt_keras.engine.stages.accumulate import SUM
from jaxopt_keras.language.options import Options
from jaxopt_keras.packing.slots import LARGE
from jaxopt_keras.packing.trees import Packed

FEW = 8  # arrays: with fewer, packing gains nothing
LOOSE = (SUM,)  # not packed: sums change in every call, the other slots only in a branch of a `cond`


def should_pack_slots(options: Options, params: list[Any], is_packed: bool) -> bool:
    """Whether the slots of `params` should be packed for the next step; `is_packed`: they are packed now."""
    if options.flat_state is not None:
        return options.flat_state
    if not is_packed and (len(params) < FEW or _is_slower(options)):
        return False
    try:
        alone = {type(p.sharding) for p in params} == {SingleDeviceSharding}
    except AttributeError:  # traced, or not JAX arrays
        return False
    return alone and (is_packed or any(1 < p.size <= LARGE for p in params))


def why_unpack(core: Core, options: Options, packed: Packed) -> str | None:
    """Return why packed parameters must be unpacked for a step; None if the step can run on the buffers."""
    if options.own_counts:
        return "each array counts its own updates"
    if not core.elementwise:
        return "the rule needs whole arrays"
    if options.clipnorm is not None:
        return "`clipnorm` clips each array separately"
    if options.constraints:
        return "there are `constraints`"
    options = options.for_params(packed)
    if len({options.decays(part.path, part) for part in packed.parts if part.buffer}) > 1:
        return "some are in `exclude_from_weight_decay`"
    return None


def _is_slower(options: Options) -> bool:
    """Whether the step would unpack the slots and pack them again, since no native loop updates the buffer."""
    elsewhere = options.engine == "xla" or jax.default_backend() != "cpu" or bool(unavailable())
    return elsewhere or options.offload is not None or options.sparse == "lazy"
