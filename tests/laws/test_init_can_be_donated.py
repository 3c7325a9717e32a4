"""A fresh state can be donated together with its parameters: every leaf has a buffer of its own.

A buffer donated twice is an error, one donated while other code still reads it is garbage; and a slot that starts as
the parameter, or as the same zeros as another slot, is an invitation to share. `step` donates, so this must hold from
the first step on, also between two states of one kernel.
"""

import jax
import jax.numpy as jnp

import jaxopt_keras as jk
from jaxopt_keras.engine.initial_state import MANY
from tests.laws.cases import AWKWARD, SMALL, assert_same_bits, few_cases, gradients, kinds, parameters

OPTIONS = {"use_ema": True, "gradient_accumulation_steps": 2, "clipnorm": 0.5}


def buffers(tree):
    """The addresses; an empty array has none."""
    return [x.unsafe_buffer_pointer() for x in jax.tree.leaves(tree) if x.size]


def check(kernels, shapes):
    params, (g,) = parameters(shapes), gradients(1, shapes)
    states = [k.init(params) for k in kernels]
    found = buffers([params, states])
    assert len(found) == len(set(found))

    results = [k.step(parameters(shapes), state, g) for k, state in zip(kernels, states, strict=True)]
    assert_same_bits(results[0], results[1])
    assert all(x.is_deleted() for x in jax.tree.leaves(states) if x.size)


@kinds
def test_init_can_be_donated(case):
    check([case.kernel(), case.kernel(), case.kernel(learning_rate=0.5)], SMALL)


@few_cases
def test_every_stage_and_awkward_trees(case):
    check([case.kernel(**OPTIONS), case.kernel(**OPTIONS), case.kernel(learning_rate=0.5, **OPTIONS)], AWKWARD)


@few_cases
def test_many_arrays_of_few_shapes(case):
    """They are initialized one by one, with the same result as in one program."""
    shapes = {f"w{i}": (2, 3) for i in range(MANY)} | {f"b{i}": (3,) for i in range(MANY + 1)}
    kernels = [case.kernel(**OPTIONS), case.kernel(state_dtype="bfloat16", exclude_from_weight_decay=["b"], **OPTIONS)]
    for kernel in kernels:
        params = parameters(shapes)
        together = kernel.compiled.init_on_one_device(params, kernel.hyper())
        assert_same_bits(kernel.init(params), together)
    check(kernels[:1] * 2, shapes)


def test_one_program_for_each_shape():
    kernel = jk.Kernel(jk.adam().rule, jk.Options(seed=11))  # no other test has compiled it
    params = {f"w{i}": jnp.ones((2, 3)) for i in range(2 * MANY)}
    kernel.init(params)
    kernel.init(params | {f"v{i}": jnp.ones((2, 3)) for i in range(3)})
    assert kernel.compiled.init_on_one_device._cache_size() == 1  # of one array
    kernel.init(params | {"b": jnp.ones(3), "c": jnp.ones(4)})
    assert kernel.compiled.init_on_one_device._cache_size() == 2
