"""None means absent: a parameter that is None is not there, and one whose gradient is None, or float0, stays as it is.

Filtered trees (equinox) have None where no array is; a loss that does not read a parameter has None, and one of an
integer has float0, for its gradient. Standing still must be exact, for the slots as for the parameter.
"""

import jax
import numpy as np
import pytest

from tests.laws.cases import assert_close, assert_same_bits, gradients, parameters, run, switched_cases

ABSENT = {"None": None, "float0": np.zeros((3,), jax.dtypes.float0)}


@switched_cases
def test_none_means_absent(case):
    kernel, grads = case.kernel(clipnorm=0.5, use_ema=True), gradients(4)
    params, state = run(kernel, parameters() | {"static": None}, [g | {"static": None} for g in grads[:2]])
    expected_params, expected = run(kernel, parameters(), grads[:2])
    assert_close(({k: x for k, x in params.items() if x is not None}, None), (expected_params, None), 2)


@switched_cases
@pytest.mark.parametrize("absent", ABSENT.values(), ids=ABSENT)
def test_stands_still(case, absent):
    kernel, (first, second) = case.kernel(), gradients(2)
    params, state = run(kernel, parameters(), [first])
    p, s = run(kernel, params, [second | {"bias": absent}], state)
    assert_same_bits((p["bias"], s.slots["bias"]), (params["bias"], state.slots["bias"]))
    expected, expected_state = run(kernel, params, [second], state)
    assert_close((p["kernel"], s.slots["kernel"]), (expected["kernel"], expected_state.slots["kernel"]), 1)
    updates, _ = kernel.update(second | {"bias": absent}, state, params)
    assert not updates["bias"].any()
