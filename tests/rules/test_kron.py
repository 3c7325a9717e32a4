"""PSGD Kron: which arrays have which factors, when they are fitted, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from tests.laws.cases import draw, gradients, run

SHAPES = {"matrix": (4, 3), "conv": (3, 3, 2, 5), "vector": (3,), "number": (), "row": (1, 6), "empty": (0, 3)}


def factors(kernel, path, params=None):
    state = kernel.init(draw(SHAPES, 0) if params is None else params)
    return [x[path].shape for name, x in state.slots.items() if name != "momentum" and hasattr(x[path], "shape")]


@pytest.mark.parametrize(
    ("options", "path", "shapes"),
    [
        ({}, "matrix", [(4, 4), (3, 3)]),
        ({}, "conv", [(18, 18), (5, 5)]),
        ({"merge_dims": False}, "conv", [(3, 3), (3, 3), (2, 2), (5, 5)]),
        ({"max_size_triangular": 3}, "matrix", [(4,), (3, 3)]),
        ({"max_size_triangular": 0}, "matrix", [(4,), (3,)]),
        ({"memory_save_mode": "one_diag"}, "matrix", [(4,), (3, 3)]),
        ({"memory_save_mode": "all_diag"}, "matrix", [(4,), (3,)]),
        ({}, "vector", [(3,)]),
        ({"min_ndim_triangular": 1}, "vector", [(3, 3)]),
        ({}, "number", [(1,)]),
        ({}, "row", [(1,), (6, 6)]),
    ],
    ids=str,
)
def test_factors(options, path, shapes):
    assert factors(jk.kron(**options), path) == shapes


def test_a_long_axis_has_a_vector():
    embedding = {"w": jax.ShapeDtypeStruct((100_000, 8), jnp.float32)}
    kernel = jk.kron()
    assert factors(kernel, "w", embedding) == [(100_000,), (8, 8)]
    assert "factors of 100000 diagonal x 8" in str(kernel.describe(embedding))


def test_the_probability_says_which_steps_fit():
    params, grads = draw({"w": (4, 3)}, 0), gradients(8, {"w": (4, 3)})
    for part, fits in ((1.0, range(8)), (0.3, [3, 7]), (lambda step: jnp.where(step < 2, 1.0, 0.25), [0, 1, 5])):
        kernel, p = jk.kron(preconditioner_update_probability=part), params
        state, changed = kernel.init(p), []
        for i, g in enumerate(grads):
            p, after = kernel.step(p, state, g, donate=False)
            if np.any(after.slots["factor_0"]["w"] != state.slots["factor_0"]["w"]):
                changed.append(i)
            state = after
        assert changed == [*fits]


def test_an_unused_array_keeps_its_factors():
    params = draw({"w": (4, 3)}, 0)
    kernel = jk.kron()
    after, state = run(kernel, params, [jax.tree.map(jnp.zeros_like, params)] * 3)
    jax.tree.map(np.testing.assert_array_equal, (after, state.slots), (params, kernel.init(params).slots))


def test_factors_get_one_size():
    params, grads = draw({"w": (12, 2)}, 0), gradients(100, {"w": (12, 2)})

    def ratio(count):
        slots = run(jk.kron(), params, grads[:count])[1].slots
        return float(jnp.max(jnp.abs(slots["factor_0"]["w"])) / jnp.max(jnp.abs(slots["factor_1"]["w"])))

    assert 0.9 < ratio(100) < 1.1 and not 0.6 < ratio(99) < 1.6


def test_the_seed_draws_other_numbers():
    params, grads = draw({"w": (4, 3)}, 0), gradients(3, {"w": (4, 3)})
    one, same, other = (run(jk.kron(seed=seed), params, grads)[0]["w"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.any(one != other)


@pytest.mark.parametrize("part", [0, 1.5, -1, float("nan")])
def test_what_is_refused(part):
    with pytest.raises(ValueError, match="`preconditioner_update_probability` must be in"):
        jk.kron(preconditioner_update_probability=part)
