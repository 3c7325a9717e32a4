"""Gradients that are zero give no NaN: of a dead unit (a row and a column), of a whole array, of all of them.

A pixel that is always black and a unit that never fires are in every other model. One 0 / 0 in an optimizer, and the
training is lost.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.laws.cases import PLAIN, RATE, draw, run

SHAPES = {"w": (6, 5), "dead": (4, 3), "b": (5,), "scalar": (), "stack": (2, 4, 3)}


@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_zeros_are_harmless(case):
    def dead(tree):
        holes = {"w": tree["w"].at[2].set(0).at[:, 3].set(0), "stack": tree["stack"].at[:, 1].set(0).at[:, :, 2].set(0)}
        return tree | holes | {"dead": tree["dead"] * 0, "scalar": tree["scalar"] * 0}

    kernel, params = case.kernel(RATE, global_clipnorm=1.0), draw(SHAPES, 0)
    grads = [dead(draw(SHAPES, i, scale=1e3)) for i in (1, 2)]
    nothing = jax.tree.map(jnp.zeros_like, params)
    for order in ([*grads, nothing], [nothing, *grads]):
        moved, state = run(kernel, params, order)
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((moved, state)))
        assert not np.array_equal(moved["w"], params["w"])
