"""Any tree will do: none, one bare array, a thousand arrays.

A model under construction, a single matrix and a transformer are pytrees alike; nothing in a step may count on more.
"""

import pytest

from tests.laws.cases import FEW, assert_close, few_cases, gradients, parameters, run, slots_at, switched_cases

OPTIONS = {"use_ema": True, "global_clipnorm": 0.5, "gradient_accumulation_steps": 2}


@switched_cases
def test_no_array(case):
    params, state = run(case.kernel(), {}, [{}] * 2)
    assert params == {} and state.count == 2


@few_cases
@pytest.mark.parametrize("empty", [{}, [], None], ids=str)
def test_no_array_and_every_stage(case, empty):
    params, state = run(case.kernel(**OPTIONS), empty, [empty] * 2)
    assert params == empty and state.count == 1


@few_cases
def test_a_bare_array(case):
    """Equals the same array in a tree."""
    kernel, grads = case.kernel(), gradients(2)
    params, state = run(kernel, parameters(), grads)
    p, s = run(kernel, parameters()["kernel"], [g["kernel"] for g in grads])
    assert_close((p, slots_at(s)), (params["kernel"], slots_at(state, "kernel")), 2)


def test_a_thousand_arrays():
    """Equal to the one that all of them are."""
    kernel, names = FEW[0].kernel(), [str(i) for i in range(1000)]
    params, grads = parameters()["bias"], gradients(2)
    p, _ = run(kernel, dict.fromkeys(names, params), [dict.fromkeys(names, g["bias"]) for g in grads])
    expected, _ = run(kernel, params, [g["bias"] for g in grads])
    for name in names:
        assert_close(p[name], expected, 2)
