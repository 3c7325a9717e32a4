"""Pickled, or copied, equals the original: a kernel and a state that went through a file go on as if they had not.

Also to another process, hence the kernel by its settings and the state by its numbers; and without a new compilation,
hence equal settings must be one program.
"""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.laws.cases import assert_same_bits, gradients, kinds, parameters, run, types

WAYS = {"pickle": lambda x: pickle.loads(pickle.dumps(x)), "deepcopy": copy.deepcopy, "copy": copy.copy}


@kinds
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_pickled_equals_original(case, way):
    kernel, grads = case.kernel(), gradients(4)
    params, state = run(kernel, parameters(), grads[:2])
    expected = run(kernel, params, grads[2:], state)

    again, numbers = way(kernel), way(jax.tree.map(np.asarray, state))
    restored = jax.tree.map(jnp.asarray, numbers)
    assert (again.rule, again.options) == (kernel.rule, kernel.options)
    assert types(restored) == types(state)
    assert_same_bits(run(again, params, grads[2:], restored), expected)
    assert_same_bits(run(again, params, grads[2:], way(state)), expected)
    assert again.compiled is kernel.compiled
