"""Kernels of the donated step on a GPU: the counts that were reached; no GPU is needed.

XLA compiles for the GPU of `benchmarks.hlo`; without JAX's plugin for CUDA there is nothing to see (`make gpu` has it).
A step over any number of arrays should be one launch of ours for each phase, in place.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

import jaxopt_keras as jk
from benchmarks.hlo import device, launches
from benchmarks.kernels import MISSING, STEPS, counted

pytestmark = pytest.mark.skipif(device() is None, reason=MISSING)


class Bound(NamedTuple):
    kernels: int
    passes: float
    copies: int = 0


BOUNDS = {
    "adamw": Bound(1, 1.001),
    "adamw, global norm": Bound(2, 1.15),  # the norm reads the gradients in a launch of its own
    "adamw, int8 slots": Bound(1, 1.001),
    "adamw, bf16+8, bf16 slots": Bound(1, 1.001),
    "adamw, bf16+8, int8 slots": Bound(1, 1.001),
    "adamw, skip_nonfinite": Bound(4, 1.58),  # XLA's two are of the predicate and the number of calls
    "adamw, accumulation": Bound(4, 1.12),
    "lion": Bound(1, 1.001),
    "lamb": Bound(2, 1.44),  # the norms come first, with the new slots; the second launch reads these and parameters
    "adamw by XLA": Bound(5, 1.001, 1),
    "adamw, int8 slots, by XLA": Bound(4, 1.4, 2),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_one_array(name):
    kernel, dtype = STEPS[name]
    found = counted(kernel, jax.ShapeDtypeStruct((1024, 1024), jnp.dtype(dtype)))
    bound = BOUNDS[name]
    assert found.aliased == found.kept
    assert found.kernels <= bound.kernels
    assert found.copies <= bound.copies
    assert found.bytes <= bound.passes * found.least


def many() -> Any:
    return {f"w{i}": jax.ShapeDtypeStruct((8, i + 1), jnp.float32) for i in range(10)}


def test_all_arrays_are_one_launch():
    found = counted(jk.adamw(0.1), many())
    assert (found.kernels, found.copies, found.aliased) == (1, 0, found.kept)


def test_by_xla_each_array_is_a_kernel_unless_they_are_packed():
    found = counted(jk.adamw(0.1, engine="xla"), many())
    assert found.kernels >= 11 and found.aliased == found.kept
    found = counted(jk.adamw(0.1, global_clipnorm=1.0, engine="xla"), jax.eval_shape(jk.pack, many()))
    assert found.kernels <= 4 and found.aliased == found.kept


def test_a_branch_is_refused():
    with pytest.raises(ValueError, match="Only steps without branches"):
        counted(jk.adamw(0.1, skip_nonfinite=True, engine="xla"), jnp.ones(3))


def test_launches_and_bytes():
    text = """HloModule m, input_output_alias={ {0}: (0, {}, may-alias) }

ENTRY %main (p: f32[2,3], s: s8[]) -> (f32[2,3], bf16[6]) {
  %p = f32[2,3]{1,0} parameter(0)
  %s = s8[] parameter(1)
  %f = (f32[2,3]{1,0}, bf16[6]{0}, /*index=2*/pred[4]{0}) fusion(%p, %s, %p), kind=kLoop, calls=%c
  %g = f32[2,3]{1,0} get-tuple-element(%f), index=0
  ROOT %copy.1 = f32[2,3]{0,1} copy(%g)
}
"""
    assert launches(text) == [("fusion", 24 + 12 + 4 + 24 + 1), ("copy", 48)]
