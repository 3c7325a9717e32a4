"""The kernels for GPUs are made from the same loops as the C code: they give the numbers of C and of XLA.

Their source runs on a grid that is played on a CPU (tests/engine/native/cuda_grid.h), where a thread that does not
arrive is an error. Thread blocks run forwards and backwards, with the same bits: nothing depends on their order.
"""

import jax
import numpy as np
import pytest

from jaxopt_keras.engine.native import unavailable
from tests.engine.native.cuda_grid import Grid
from tests.engine.native.test_cuda_grid import CODED, OPTIONS, assert_near, on
from tests.laws.cases import FIRST, RULE_BY_RULE, assert_same_bits, draw

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())

SHAPES = {"w": (33, 128), "half": (64, 80), "v": (2100,), "one": (1,), "empty": (0, 3)}
EVERYTHING = CODED | {"gradient_accumulation_steps": 2, "skip_nonfinite": True, "flat_state": True}
# Every rule with everything switched, each with other options; a rule of elements and one of norms with all storage.
MATRICES = [case for case in RULE_BY_RULE if case.rule.grain == "matrix"]  # which XLA updates, but for their biases
CASES = [(case, {}) for case in MATRICES]
CASES += [(x, OPTIONS[i % len(OPTIONS)]) for i, x in enumerate(case for case in RULE_BY_RULE if case not in MATRICES)]
NAMED = {type(case.rule).__name__: case for case in FIRST}
CASES += [(NAMED["AdamW"], options) for options in [*OPTIONS, EVERYTHING]]
CASES += [(NAMED["Lamb"], options) for options in OPTIONS if "state_dtype" in options]


def steps(step, kernel, params, grads):
    results = params, kernel.init(params)
    for g in grads:
        results = step(*results, g, kernel.hyper())
    return jax.block_until_ready(results)


@pytest.mark.parametrize("number,case,options", [(i, *x) for i, x in enumerate(CASES)], ids=str)
def test_kernels_equal_loops(number, case, options):
    kernel, form = case.in_large_blocks.kernel(**options), ["table", "switch"][number % 2]
    params, grads = draw(SHAPES, 0), [draw(SHAPES, seed, scale=0.1) for seed in (1, 2)]
    arguments = params, kernel.init(params), grads[0], kernel.hyper()
    grid = Grid(form)
    found = steps(on(grid, kernel.program.bare_step, *arguments), kernel, params, grads)
    if number % 3 == 0:
        backwards = on(Grid(form, backwards=True), kernel.program.bare_step, *arguments)
        assert_same_bits(found, steps(backwards, kernel, params, grads))
    assert_near(kernel, found, steps(kernel.compiled.step, kernel, params, grads))
    xla = steps(jax.jit(kernel.program.bare_step), kernel, params, grads)
    assert_near(kernel, found, xla)
    for a, b in zip(*(jax.tree.leaves((x.count, x.scalars)) for _, x in (found, xla)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    assert grid.launched or case.rule.grain == "matrix"
