"""A parameter that gets its first gradient after other parameters, with the step count of all."""

import numpy as np
import pytest

import jaxopt_keras as jk
from tests.laws.cases import FIRST, draw

SHAPES = {"first": (6, 4), "late": (6, 4)}


@pytest.mark.parametrize("case", FIRST, ids=str)
def test_its_steps_are_about_as_long(case):
    """Its slots are zeros: in that state no rule may divide by them."""
    kernel, grads = case.kernel(), draw(SHAPES, 1)
    lengths = {}
    for name, start in (("late", 3), ("first", 0)):
        params = draw(SHAPES, 0)
        state, before = kernel.init(params), np.asarray(params[name])
        for i in range(6):
            some = grads if i >= start else grads | {"late": None}
            params, state = kernel.step(params, state, some, donate=False)
        lengths[name] = np.max(np.abs(np.asarray(params[name]) - before))
    assert lengths["late"] <= 10 * lengths["first"]
    # Of these the gradient's directions are found every 200 updates, for all parameters at once (docs/state.md).
    assert (lengths["late"] > 0) != (type(case.rule).__name__ in ("GaLore", "APOLLO"))


def test_a_late_shampoo_is_grafted_until_its_roots():
    kernel, params, grads = jk.shampoo(0.1, precondition_frequency=4), draw(SHAPES, 0), draw(SHAPES, 1)
    state, before = kernel.init(params), params["late"]
    for i in range(6):
        params, state = kernel.step(params, state, grads if i > 3 else grads | {"late": None}, donate=False)
    assert np.all(params["late"] != before)
