"""A bfloat16 or float16 parameter follows its float32 twin, one rounding per step apart.

The arithmetic and the slots are float32 whatever the parameter is, so all that is lost is in writing the parameter. In
the parameter's own precision a second moment would not decay and a small step would vanish.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.laws.cases import SMALL, every_case, gradients, parameters

STEPS = 10


@every_case
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_follows_float32(case, dtype):
    kernel, epsilon = case.kernel(), float(jnp.finfo(dtype).eps)
    low = parameters(dtype=dtype)
    high = start = jax.tree.map(lambda x: x.astype(jnp.float32), low)
    states = {dtype: kernel.init(low), jnp.float32: kernel.init(high)}
    largest = jax.tree.map(jnp.abs, high)
    for g in gradients(STEPS, dtype=dtype):
        low, states[dtype] = kernel.step(low, states[dtype], g, donate=False)
        wide = jax.tree.map(lambda x: x.astype(jnp.float32), g)
        high, states[jnp.float32] = kernel.step(high, states[jnp.float32], wide, donate=False)
        largest = jax.tree.map(lambda x, y: jnp.maximum(jnp.abs(x), y), high, largest)
    slots = [jax.tree.map(lambda x: x.dtype, s.slots) for s in states.values()]
    assert slots[0] == slots[1]
    for name in SMALL:
        # Each write is off by at most half a unit in the last place of the parameter, epsilon/2 of its size. What the
        # rule computes from the parameter may carry an error on, but makes no larger one of it.
        bound = STEPS * epsilon / 2 * np.max(largest[name])
        np.testing.assert_allclose(low[name].astype(jnp.float32), high[name], rtol=0, atol=bound)
        assert (low[name].astype(jnp.float32) != start[name]).all()
