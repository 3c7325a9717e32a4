"""A fresh state can be donated together with its parameters: every leaf has a buffer of its own.

A buffer donated twice is an error, one donated while somebody else still reads it is garbage; and a slot that starts as
the parameter, or as the same zeros as another slot, is an invitation to share. `step` donates, so this must hold from
the first step on, also between two states of one kernel.
"""

import jax

from tests.laws.cases import AWKWARD, assert_same_bits, gradients, parameters, switched_cases

OPTIONS = {"use_ema": True, "gradient_accumulation_steps": 2, "clipnorm": 0.5}


def buffers(tree):
    """The addresses; an empty array has none."""
    return [x.unsafe_buffer_pointer() for x in jax.tree.leaves(tree) if x.size]


@switched_cases
def test_no_buffer_is_shared(case):
    params = parameters(AWKWARD)
    same, other = case.kernel(**OPTIONS), case.kernel(learning_rate=0.5, **OPTIONS)
    found = buffers([params, same.init(params), same.init(params), other.init(params)])
    assert len(found) == len(set(found))


@switched_cases
def test_params_and_state_are_donated(case):
    kernel, other = case.kernel(**OPTIONS), case.kernel(learning_rate=0.5, **OPTIONS)
    params, (g,) = parameters(AWKWARD), gradients(1, AWKWARD)
    first, second, third = kernel.init(params), kernel.init(params), other.init(params)
    a, b = kernel.step(parameters(AWKWARD), first, g), kernel.step(parameters(AWKWARD), second, g)
    other.step(params, third, g)
    assert_same_bits(a, b)
    gone = [params, *(state._replace(hyper={}) for state in (first, second, third))]
    assert all(x.is_deleted() for x in jax.tree.leaves(gone) if x.size)
