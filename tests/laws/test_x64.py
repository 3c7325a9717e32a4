"""float64 parameters are trained in float64, and float32 parameters in float32, whatever else x64 switches on.

One float32 number in the chain, a hyperparameter or the step count, would leave a float64 training with seven digits;
one float64 number in the other would double its memory, or fail on hardware that has none. That all sixteen digits are
right is the affair of `test_parity_oracles.py`.
"""

import jax
import jax.numpy as jnp
import pytest

from tests.laws.cases import gradients, operations, parameters, switched_cases

OPTIONS = {
    "use_ema": True,
    "ema_overwrite_frequency": 2,
    "global_clipnorm": 0.5,
    "loss_scale_factor": 4.0,
    "gradient_accumulation_steps": 2,
}


@switched_cases
@pytest.mark.parametrize("dtype, other", [(jnp.float64, jnp.float32), (jnp.float32, jnp.float64)])
def test_no_array_of_the_other_precision(case, dtype, other, x64):
    kernel, params, (g,) = case.kernel(**OPTIONS), parameters(dtype=dtype), gradients(1, dtype=dtype)
    state = jax.eval_shape(kernel.init, params)
    for f, x in ((kernel.init, (params,)), (kernel.step, (params, state, g)), (kernel.update, (g, state, params))):
        for eqn in operations(jax.make_jaxpr(f)(*x)):
            for v in eqn.outvars:
                # Of a float64 training no number at all may be float32; of the other, those kept once are float64.
                assert v.aval.dtype != other or (other == jnp.float64 and v.aval.ndim == 0), eqn
