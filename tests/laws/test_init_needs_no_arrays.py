"""Init needs types alone: under `eval_shape`, under `jit`, on `ShapeDtypeStruct`s it gives the types of the real state.

A large model's state is laid out, sharded and restored from a checkpoint before there is any array.
"""

import jax
import pytest

from tests.laws.cases import AWKWARD, every_case, kinds, parameters, types

OPTIONS = {"use_ema": True, "gradient_accumulation_steps": 2, "clipnorm": 0.5}


@kinds
def test_types_of_the_real_state(case):
    kernel, params = case.kernel(**OPTIONS), parameters(AWKWARD)
    expected = types(kernel.init(params))
    described = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    assert types(kernel.init(described)) == expected
    assert types(jax.eval_shape(kernel.init, params)) == expected
    assert types(jax.eval_shape(kernel.init, described)) == expected
    assert types(jax.jit(kernel.init).eval_shape(params)) == expected


@every_case
@pytest.mark.parametrize("x64", [False, True])
def test_no_array_is_needed(case, x64):
    with jax.enable_x64(x64):
        kernel, params = case.kernel(), parameters(dtype=float)
        assert types(kernel.init(jax.eval_shape(lambda: params))) == types(jax.eval_shape(kernel.init, params))
