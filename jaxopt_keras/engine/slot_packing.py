"""Decisions on packed arrays: whether slots are packed between eager steps, whether parameters stay packed in a step.

Slots are packed where that is faster: where dispatch costs more than arithmetic. On a CPU that is so for small arrays.
A GPU is faster than its host, and its kernels work in buffers in accesses as wide, so there arrays of any size are
packed, unless XLA updates some of them, to which buffers are no help.
"""

from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from jaxopt_keras.engine.core import Core, Layout
from jaxopt_keras.engine.cores.leafwise import Leafwise
from jaxopt_keras.engine.native import unavailable
from jaxopt_keras.engine.native.backends import BACKENDS
from jaxopt_keras.engine.stages.accumulate import SUM
from jaxopt_keras.language.options import Options
from jaxopt_keras.language.places import platform
from jaxopt_keras.packing.parts import Form
from jaxopt_keras.packing.slots import small, whole
from jaxopt_keras.packing.trees import Packed

FEW = 8  # arrays: with fewer, packing gains nothing
LOOSE = (SUM,)  # not packed: sums change in every call, the other slots only in a branch of a `cond`


def form_of(core: Core, layout: Layout, params: list[Any]) -> Form:
    """Return the form in which the slots of parameters are packed, if they are, on the platform of the program."""
    if platform() not in ("gpu", "cuda") or BACKENDS["cuda"].unavailable():
        return small()
    return whole() if isinstance(core, Leafwise) and not any(map(core.stacks, layout.leaves, params)) else small()


def form_to_pack(core: Core, options: Options, params: dict[str, Any], is_packed: bool) -> Form | None:
    """Return the form in which the slots of `params` should be packed for the next step; None: not at all.

    Args:
        is_packed: they are packed now, and can stay so, in whatever form.
    """
    arrays = params.values()
    if options.flat_state is False:
        return None
    if options.flat_state is None:
        if not is_packed and (len(params) < FEW or _is_slower(options)):
            return None
        try:
            alone = {type(p.sharding) for p in arrays} == {SingleDeviceSharding}
        except AttributeError:  # traced, or not JAX arrays
            return None
        if not alone:
            return None
    if is_packed:
        return small()
    form = form_of(core, *Layout.read(params, options))
    has_loops = jax.default_backend() == "cpu" or form == whole()
    gains = has_loops and any(1 < p.size <= form.elements(p) for p in arrays)
    return form if options.flat_state or gains else None


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
    elsewhere = options.engine == "xla" or bool(unavailable())
    return elsewhere or options.offload is not None or options.sparse == "lazy"
