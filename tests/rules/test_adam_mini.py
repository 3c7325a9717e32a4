"""The blocks of Adam-mini: the usual ones, those of a description, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras.rules.adam_mini import usual_blocks
from tests.laws.cases import draw, gradients, run

SHAPES = {
    "block": {"query": {"kernel": (6, 2, 4), "bias": (2, 4)}, "norm": (6,)},
    "conv": (3, 3, 2, 5),
    "embedding": (7, 6),
    "temperature": (),
}


def test_the_usual_blocks():
    state = jk.adam_mini().init(draw(SHAPES, 0))
    shapes = jax.tree.map(lambda v: v.shape, state.slots["velocity"])
    assert shapes == {
        "block": {"query": {"kernel": (2,), "bias": (2, 4)}, "norm": ()},
        "conv": (5,),
        "embedding": (7,),
        "temperature": (),
    }


def test_heads_in_one_axis_are_those_of_an_axis_of_their_own():
    apart = {"w": (6, 3, 4)}
    params, grads = draw(apart, 0), gradients(3, apart)
    joined = lambda tree: {"w": tree["w"].reshape(6, 12)}
    expected, _ = run(jk.adam_mini(0.1, blocks={"w": "rows batch columns"}), params, grads)
    fused = jk.adam_mini(0.1, blocks={"w": "rows (batch=3 columns)"})
    found, state = run(fused, joined(params), [joined(g) for g in grads])
    np.testing.assert_allclose(found["w"], joined(expected)["w"], rtol=1e-6)
    assert state.slots["velocity"]["w"].shape == (3,)
    assert "matrix, 3 blocks" in str(fused.describe(joined(params)))


def test_a_block_for_each_number_is_adam_and_none_is_the_usual_one():
    params, grads = draw({"w": (4, 3), "v": (3,)}, 0), gradients(3, {"w": (4, 3), "v": (3,)})
    found, _ = run(jk.adam_mini(0.1, blocks={"": "batch..."}), params, grads)
    expected, _ = run(jk.adam(0.1, epsilon=1e-8, variant="optax"), params, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)
    usual, _ = run(jk.adam_mini(0.1), params, grads)
    for blocks in ({"": None}, lambda path, shape: None, usual_blocks):
        same, _ = run(jk.adam_mini(0.1, blocks=blocks), params, grads)
        jax.tree.map(np.testing.assert_array_equal, same, usual)


@pytest.mark.parametrize(
    ("blocks", "error", "said"),
    [
        ({"w": "rows heads"}, ValueError, "'heads' is none of the words"),
        ({"w": "batch"}, ValueError, "it has 1 axes"),
        ({"w": "(batch=5 rows) columns"}, ValueError, "an axis of 4 is not split"),
        ({"(": "batch"}, ValueError, "`blocks` must hold regular expressions"),
        ({"w": 3}, TypeError, "`blocks` must map patterns to descriptions"),
        ("rows", TypeError, "`blocks` must map patterns"),
    ],
)
def test_what_is_refused(blocks, error, said):
    with pytest.raises(error, match=said):
        jk.adam_mini(blocks=blocks).init({"w": jnp.ones((4, 3))})


def test_a_pattern_that_matches_nothing_is_told():
    with pytest.warns(UserWarning, match="query"):
        jk.adam_mini(blocks={"query": "rows batch"}).init({"w": jnp.ones((4, 3))})
