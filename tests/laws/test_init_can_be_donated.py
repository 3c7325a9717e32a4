"""A fresh state can be donated together with its parameters: every leaf has a buffer of its own.

A buffer donated twice is an error, one donated while other code still reads it is garbage; and a slot that starts as
the parameter, or as the same zeros as another slot, is an invitation to share. `step` donates, so this must hold from
the first step on, also between two states of one kernel.
"""

import jax

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
