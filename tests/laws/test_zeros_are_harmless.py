"""Gradients that are zero give no NaN: of a dead unit (a row and a column), of a whole array, of all of them.

A pixel that is always black and a unit that never fires are in every other model. One 0 / 0 in an optimizer, and the
training is lost.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.laws.cases import PLAIN, RATE, draw, run

SHAPES = {"w": (6, 5), "dead": (4, 3), "b": (5,), "stack": (2, 4, 3)}


@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_zeros_are_harmless(case):
    def dead(tree):
        tree = {name: np.array(x) for name, x in tree.items()}
        for x in (tree["w"][2], tree["w"][:, 3], tree["stack"][:, 1], tree["stack"][:, :, 2], tree["dead"], tree["b"]):
            x[...] = 0
        return jax.tree.map(jnp.asarray, tree)

    kernel, params = case.kernel(RATE, global_clipnorm=1.0), draw(SHAPES, 0)
    grads = [dead(draw(SHAPES, i, scale=1e3)) for i in (1, 2)]
    nothing = jax.tree.map(jnp.zeros_like, params)
    for order in ([*grads, nothing] * 2, [nothing, *grads] * 2):
        moved, state = run(kernel, params, order)
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((moved, state)))
        assert not np.array_equal(moved["w"], params["w"])
