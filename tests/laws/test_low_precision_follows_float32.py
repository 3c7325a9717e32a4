"""A bfloat16 or float16 parameter follows its float32 twin, one rounding per step apart.

The arithmetic and the slots are float32 whatever the parameter is, so all that is lost is in writing the parameter. In
the parameter's own precision a second moment would not decay and a small step would vanish.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.laws.cases import SMALL, every_rule, gradients, parameters, slots_at

STEPS = 10
DTYPES = {"bfloat16": jnp.bfloat16, "float16": jnp.float16}


def exact(tree):
    """Rounded to what both can hold."""
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float16).astype(jnp.float32), tree)


@every_rule
def test_low_precision_follows_float32(case):
    if case.rule.takes:
        pytest.skip("arrays of other paths draw other numbers")
    kernel = case.kernel()
    high, grads = exact(parameters()), [exact(g) for g in gradients(STEPS)]
    params = {n: jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), high) for n, dtype in DTYPES.items()}
    params["float32"] = high
    state, largest = kernel.init(params), jax.tree.map(jnp.abs, high)
    for g in grads:
        params, state = kernel.step(params, state, dict.fromkeys(params, g), donate=False)
        largest = jax.tree.map(lambda x, y: jnp.maximum(jnp.abs(x), y), params["float32"], largest)
    for dtype, numbers in DTYPES.items():
        dtypes = [jax.tree.map(lambda x: x.dtype, slots_at(state, n)) for n in (dtype, "float32")]
        assert dtypes[0] == dtypes[1]
        for name in SMALL:
            low, twin = params[dtype][name].astype(jnp.float32), params["float32"][name]
            # Each write is off by at most half a unit in the last place, epsilon/2 of the parameter's size. The rule
            # may hand an error on, but makes no larger one of it.
            bound = STEPS * float(jnp.finfo(numbers).eps) / 2 * np.max(largest[name])
            np.testing.assert_allclose(low, twin, rtol=0, atol=bound, err_msg=f"{dtype} {name}")
        assert (params[dtype]["bias"] != 0).any()  # it was zero, where every step shows
