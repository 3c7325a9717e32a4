"""Types are a fixed point: parameters and state come out of a step as they went in.

Shapes, dtypes, weak types and structure are what a compiled program, a `lax.scan` and a checkpoint are made for: one
that drifts compiles the second call anew, breaks the scan, or does not load.
"""

import jax
import jax.numpy as jnp
import pytest

from tests.laws.cases import AWKWARD, gradients, kinds, parameters, run, switched_cases, types

OPTIONS = {
    "use_ema": True,
    "ema_overwrite_frequency": 2,
    "global_clipnorm": 0.5,
    "loss_scale_factor": 4.0,
    "constraints": {"kernel": jnp.abs},
    "gradient_accumulation_steps": 2,
}


def assert_fixed_point(kernel, params, grads):
    """Without compiling anything."""
    state = jax.eval_shape(kernel.init, params)
    before = types((params, state))
    assert types(jax.eval_shape(kernel.step, params, state, grads)) == before
    updates, updated = jax.eval_shape(kernel.update, grads, state, params)
    assert types(updated) == types(state)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert types(jax.eval_shape(kernel.averaged, params, state)) == types(params)


@switched_cases
def test_mixed_dtypes(case):
    assert_fixed_point(case.kernel(), parameters(AWKWARD), gradients(1, AWKWARD)[0])


@kinds
def test_every_stage(case):
    assert_fixed_point(case.kernel(**OPTIONS), parameters(AWKWARD), gradients(1, AWKWARD)[0])


@kinds
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_gradients_of_another_dtype(case, dtype):
    """As a mixed-precision loss gives them."""
    assert_fixed_point(case.kernel(), parameters(), gradients(1, dtype=dtype)[0])
    assert_fixed_point(case.kernel(), parameters(dtype=dtype), gradients(1)[0])


@kinds
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16])
def test_x64(case, dtype, x64):
    assert_fixed_point(case.kernel(**OPTIONS), parameters(dtype=dtype), gradients(1, dtype=dtype)[0])


@switched_cases
def test_outside_jit(case):
    """The types of a step are those of `eval_shape`."""
    kernel, params = case.kernel(), parameters()
    assert types(run(kernel, params, gradients(1))) == types((params, kernel.init(params)))
