"""Dion: its slots, which parameters it leaves to Adam, what a step shows, where it runs, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_keras as jk
from tests.laws.cases import draw, gradients, run, slots_at

SHAPES = {
    "tall": (16, 8),
    "wide": (3, 7),
    "cube": (2, 3, 4),
    "bias": (3,),
    "number": (),
    "empty": (0, 3),
    "embedding": (5, 4),
}


def test_slots_and_the_parameters_of_adam():
    params, kernel = draw(SHAPES, 0), jk.dion(rank_fraction=0.5)
    state = kernel.init(params)
    assert state.slots["basis"]["tall"].shape == (16, 4) and state.slots["basis"]["wide"].shape == (3, 2)
    for name in ("cube", "bias", "number", "empty", "embedding"):
        assert "velocity" in slots_at(state, name) and "basis" not in slots_at(state, name)
    plan = str(kernel.describe(params))
    assert "rank 4" in plan and "rank 2" in plan and "AdamPart" in plan
    assert "basis" in slots_at(jk.dion(exclude_embeddings=False).init(params), "embedding")
    assert "basis" not in slots_at(jk.dion(exclude_layers=["^wide$"]).init(params), "wide")


def test_another_rule_in_the_place_of_adam():
    params, grads = draw({"bias": (3,)}, 0), gradients(2, {"bias": (3,)})
    ours, _ = run(jk.dion(0.1, others=jk.lion(), adam_lr_ratio=0.5, adam_weight_decay=None), params, grads)
    theirs, _ = run(jk.lion(0.05), params, grads)
    np.testing.assert_allclose(ours["bias"], theirs["bias"], rtol=1e-6)


def test_all_directions_give_an_orthogonal_step():
    params, grads = {"w": jnp.zeros((6, 4))}, gradients(1, {"w": (6, 4)})
    moved, state = run(jk.dion(0.1, weight_decay=None), params, grads)
    basis, step = np.asarray(state.slots["basis"]["w"]), np.asarray(moved["w"])
    np.testing.assert_allclose(np.linalg.norm(basis, axis=0), 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(step), 0.1 * (4 / 6) ** 0.5 * 2, rtol=1e-5)
    np.testing.assert_allclose(state.slots["momentum"]["w"], 0.95 * np.asarray(grads[0]["w"]), atol=1e-5)


def test_a_gradient_of_lower_rank_has_a_step_of_that_rank():
    """Rounding errors divided by their norms would be directions of full size."""
    a, b = np.random.default_rng(0).normal(size=(2, 64)).astype(np.float32)
    moved, _ = run(jk.dion(1.0, weight_decay=None), {"w": jnp.zeros((64, 64))}, [{"w": jnp.outer(a, b)}] * 3)
    expected = -3 * np.outer(a, b) / np.linalg.norm(a) / np.linalg.norm(b)
    np.testing.assert_allclose(moved["w"], expected, atol=2e-5)


def test_a_matrix_without_gradients_keeps_its_basis():
    params, (g, *_) = draw({"w": (4, 6)}, 0), gradients(1, {"w": (4, 6)})
    zero, kernel = {"w": jnp.zeros((4, 6))}, jk.dion(0.1, weight_decay=None)
    moved, state = run(kernel, params, [zero, zero])
    np.testing.assert_array_equal(moved["w"], params["w"])
    assert np.all(np.isfinite(state.slots["basis"]["w"])) and np.any(state.slots["basis"]["w"])
    first = state.slots["basis"]["w"]
    np.testing.assert_array_equal(run(kernel, params, [zero] * 5)[1].slots["basis"]["w"], first)
    assert np.any(run(kernel, params, [zero, g])[0]["w"] != params["w"])


@pytest.mark.parametrize("size", [1e20, 1e-30, np.nan])
def test_great_small_and_invalid_gradients(size):
    params, (g, *_) = draw({"w": (4, 6)}, 0), gradients(1, {"w": (4, 6)})
    moved, state = run(jk.dion(0.1), params, [{"w": size * g["w"]}] * 40)
    for x in (moved["w"], state.slots["momentum"]["w"], state.slots["basis"]["w"]):
        assert np.all(np.isnan(x)) if np.isnan(size) else np.all(np.isfinite(x))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("spec", [("data", "model"), (None, "data"), (("data", "model"), None)], ids=str)
def test_on_a_mesh(kind, spec):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
    split, kernel = NamedSharding(mesh, PartitionSpec(*spec)), jk.dion(0.1, rank_fraction=0.4)
    tree, grads = draw({"w": (16, 8)}, 0), gradients(3, {"w": (16, 8)})
    expected, _ = run(kernel, tree, grads)
    where = lambda state, slot: state.slots[slot]["w"].addressable_shards[0].data.shape
    basis = (split.shard_shape((16, 8))[0], 4)
    with jax.set_mesh(mesh):
        params = jax.device_put(tree, split)
        state = jax.jit(kernel.init)(params)
        assert where(state, "basis") == basis
        for g in jax.device_put(grads, split):
            params, state = jax.jit(kernel.step)(params, state, g)
    assert where(state, "momentum") == split.shard_shape((16, 8)) and where(state, "basis") == basis
    np.testing.assert_allclose(params["w"], expected["w"], rtol=0, atol=2e-5)


@pytest.mark.parametrize(("make", "name"), [(jk.dion, "rank_fraction"), (jk.dion2, "fraction")])
def test_what_is_refused(make, name):
    for wrong in (0, -0.5, 1.5, float("nan")):
        with pytest.raises(ValueError, match=rf"`{name}` must be more than 0.* Received: {name}="):
            make(**{name: wrong})
    for wrong in (True, "half", None):
        with pytest.raises(TypeError, match=rf"`{name}` must be a Python number.*static_args=\(\"{name}\",\)"):
            make(**{name: wrong})
