"""Which parameters a program updates in stacks, and which ones in another way than the user may expect."""

import warnings
from typing import Any

import jax
import numpy as np

from jaxopt_keras.engine.core import Program
from jaxopt_keras.engine.programs.around import plain_programs
from jaxopt_keras.engine.slot_packing import form_of
from jaxopt_keras.language.places import Places


def stacked(program: Program, params: Any) -> set[str]:
    """Return the paths of the parameters that are updated in one stack with others of their shape."""
    parts = ((core, zip(layout.leaves, arrays, strict=True)) for core, layout, arrays in program.parts(params))
    return {leaf.path for core, leaves in parts for leaf, p in leaves if core.stacks(leaf, p)}


def warn_of_overlooked(program: Program, params: Any, stacklevel: int) -> None:
    """Warn of parameters that are not updated as the user may expect."""
    params = jax.tree.map(lambda p: p if hasattr(p, "dtype") else np.asarray(p), params)  # it may be a Python number
    for core, layout, arrays in program.parts(params):
        if said := core.overlooked(layout, arrays):
            warnings.warn(said, stacklevel=stacklevel + 1)
    if any(getattr(plain, "options", None) and plain.options.flat_state for plain in plain_programs(program)):
        _warn_of_split(program, params, stacklevel + 1)


def _warn_of_split(program: Program, params: Any, stacklevel: int) -> None:
    """Warn of arrays whose packed slots every step of `flat_state` gathers."""
    parts = [(form_of(*part), zip(part[1].leaves, part[2], strict=True)) for part in program.parts(params)]
    packed = {leaf.path for form, leaves in parts for leaf, p in leaves if p.size <= form.elements(p)}
    if split := [path for path, _ in Places.of(params).shards if path in packed]:
        warnings.warn(
            "`flat_state` is for parameters on one device: a buffer of slots is not split, so that devices exchange "
            f"the slots in every step. Received: flat_state=True, and {len(split)} arrays that are split over devices, "
            f"the first at `{split[0]}`. Leave `flat_state` out.",
            stacklevel=stacklevel + 1,
        )
