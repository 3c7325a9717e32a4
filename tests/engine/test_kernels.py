"""Kernels of the donated step on a GPU: the counts that were reached; no GPU is needed.

XLA compiles for the GPU of `benchmarks.hlo`; without JAX's plugin for CUDA there is nothing to see. A step over one
array should be one kernel for the scalars and one for all the rest, in place. Blocks have two, the first of which finds
the scales.
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
    reason: str = ""


SCALES = "old scales are read by the second kernel, while the new ones are there"
BOUNDS = {
    "adamw": Bound(2, 1.001),
    "adamw, global norm": Bound(4, 1.15, reason="the norm reads the gradients, and sums in two stages"),
    "adamw, int8 slots": Bound(4, 1.39, 3, SCALES),
    "adamw, bf16+8, bf16 slots": Bound(2, 1.001, 1, "of the step count, which rounding reads too"),
    "adamw, bf16+8, int8 slots": Bound(4, 1.36, 3, SCALES),
    "lion": Bound(2, 1.001),
    "lamb": Bound(7, 1.43, reason="two norms come first, each in two stages"),
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


def test_a_kernel_for_each_array():
    found = counted(jk.adamw(0.1), many())
    assert (found.kernels, found.copies, found.aliased) == (11, 0, found.kept)


def test_packed_arrays_are_as_one():
    found = counted(jk.adamw(0.1, global_clipnorm=1.0), jax.eval_shape(jk.pack, many()))
    assert (found.kernels, found.copies, found.aliased) == (3, 0, found.kept)


def test_a_branch_is_refused():
    with pytest.raises(ValueError, match="Only steps without branches"):
        counted(jk.adamw(0.1, skip_nonfinite=True), jnp.ones(3))


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
