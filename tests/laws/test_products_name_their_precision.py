"""Products of float32 matrices name their precision: the default one is bfloat16 on a TPU and TF32 on a GPU."""

import jax
import jax.numpy as jnp

from tests.laws.cases import Case, every_rule, operations, parameters


def unnamed(function, *args):
    """The products of float32 in a function that do not name their precision."""
    found = operations(jax.make_jaxpr(function)(*args).jaxpr)
    products = [e for e in found if e.primitive.name in ("dot_general", "conv_general_dilated")]
    assert all(e.params["precision"] is None for e in products if e.invars[0].aval.dtype == jnp.bfloat16)
    return [e for e in products if e.params["precision"] is None and e.invars[0].aval.dtype != jnp.bfloat16]


@every_rule
def test_products_name_their_precision(case: Case):
    params, kernel = parameters(), case.kernel(engine="xla")
    assert not unnamed(kernel.program.step, params, kernel.init(params), params, kernel.hyper())


def test_a_product_without_is_found():
    x = jnp.ones((3, 3))
    assert unnamed(lambda x: x @ x, x) and not unnamed(lambda x: x * x, x)
