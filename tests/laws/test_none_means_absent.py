"""None means absent: a parameter that is None is not there, and one whose gradient is None, or float0, stays as it is.

Filtered trees (equinox) have None where no array is; a loss that does not read a parameter has None, and one of an
integer has float0, for its gradient. Standing still must be exact, for the slots as for the parameter.
"""

import jax
import numpy as np

from jaxopt_keras import Kernel, Options
from tests.laws.cases import (
    SMALL,
    assert_close,
    assert_same_bits,
    few_cases,
    gradients,
    kinds,
    parameters,
    run,
    slots_at,
)

OPTIONS = {"global_clipnorm": 0.5, "use_ema": True, "gradient_accumulation_steps": 2}


@few_cases
def test_none_among_the_parameters(case):
    kernel, grads = case.kernel(**OPTIONS), gradients(4)
    static = {"function": None}
    params, state = run(kernel, parameters() | static, [g | static for g in grads])
    expected, expected_state = run(kernel, parameters(), grads)
    assert params.pop("function", "gone") is None
    assert all(tree.pop("function", "gone") is None for tree in state.slots.values())
    assert_close((params, state), (expected, expected_state), 4)


@kinds
def test_stands_still(case):
    check(case, None)


@few_cases
def test_float0_stands_still(case):
    check(case, np.zeros(SMALL["bias"], jax.dtypes.float0))


def check(case, absent):
    kernel, (first, second) = case.kernel(), gradients(2)
    params, state = run(kernel, parameters(), [first])
    p, s = run(kernel, params, [second | {"bias": absent}], state)
    q, t = run(kernel, params, [second], state)
    assert_same_bits((p["bias"], slots_at(s, "bias")), (params["bias"], slots_at(state, "bias")))
    assert_close((p["kernel"], slots_at(s, "kernel")), (q["kernel"], slots_at(t, "kernel")), 1)


@few_cases
def test_updates_are_none(case):
    """As optax's are, with the parameters and without, where the rule does without them."""
    kernel, (g,) = case.kernel(), gradients(1)
    updates, _ = kernel.update(g | {"bias": None}, kernel.init(parameters()), parameters())
    assert updates["bias"] is None and updates["kernel"].any()
    plain = Kernel(case.rule, Options())
    state = plain.init(parameters())
    try:
        found = plain.update(g | {"bias": None}, state)
    except ValueError as error:
        assert "needs the parameters" in str(error)  # the rule reads them
    else:
        assert_same_bits(found, plain.update(g | {"bias": None}, state, parameters()))
