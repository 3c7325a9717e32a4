"""Which parameters a program updates in stacks, and which ones in another way than the user may expect."""

import warnings
from typing import Any

import jax
import numpy as np

from jaxopt_keras.engine.core import Program


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
