"""GaLore and APOLLO: the shapes of their slots, where these are, when they project, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_keras as jk
from tests.laws.cases import draw, gradients, run, slots_at
from tests.oracles import apollo, loop

SHAPES = {"tall": (16, 8), "wide": (4, 6), "cube": (2, 3, 4), "bias": (3,), "number": (), "empty": (0, 3)}
both = pytest.mark.parametrize("make", [jk.galore, jk.apollo], ids=["galore", "apollo"])


@both
def test_the_shapes_of_slots(make):
    kernel, params = make(rank=3), draw(SHAPES, 0)
    state = kernel.init(params)
    assert state.slots["momentum"]["tall"].shape == (16, 3) and state.slots["projector"]["tall"].shape == (3, 8)
    assert state.slots["momentum"]["wide"].shape == (3, 6) and state.slots["projector"]["wide"].shape == (4, 3)
    plan = str(kernel.describe(params))
    assert "matrix, rank 3" in plan and "matrix, Adam" in plan
    for name in ("cube", "bias", "number", "empty"):
        assert state.slots["momentum"][name].shape == SHAPES[name] and "projector" not in slots_at(state, name)


@both
def test_a_rank_beyond_the_matrix_is_that_of_the_matrix(make):
    params, grads = draw({"w": (4, 6)}, 0), gradients(3, {"w": (4, 6)})
    assert "rank 4" in str(make(rank=9).describe(params))
    jax.tree.map(
        np.testing.assert_array_equal, run(make(0.1, rank=9), params, grads), run(make(0.1, rank=4), params, grads)
    )


@both
def test_directions_last_for_a_gap(make):
    params, grads = draw({"w": (4, 6)}, 0), gradients(5, {"w": (4, 6)})
    kernel = make(0.1, rank=2, update_proj_gap=2)
    seen, state = [], kernel.init(params)
    for g in grads:
        params, state = kernel.step(params, state, g, donate=False)
        seen.append(np.asarray(state.slots["projector"]["w"]))
    assert [bool(np.any(a != b)) for a, b in zip(seen, seen[1:], strict=False)] == [False, True, False, True]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("options", [{}, {"kl": True}, {"max_precond_dim": 8}, {"max_preconditioner_dim": 6}], ids=str)
@pytest.mark.parametrize("spec", [("data", "model"), (None, "data"), (("data", "model"), None)], ids=str)
def test_rules_of_factors_on_a_mesh_with_explicit_axes(options, spec):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    split = NamedSharding(mesh, PartitionSpec(*spec))
    make = jk.shampoo if "max_preconditioner_dim" in options else jk.soap
    kernels = [make(0.1, precondition_frequency=1, **options)]
    kernels += [] if options else [jk.shampoo(0.1)]
    # In float64, since KL-SOAP divides by the roots of eigenvalues that are 0.
    tree, grads = jax.tree.map(np.float64, (draw({"w": (16, 8)}, 0), gradients(4, {"w": (16, 8)})))
    for kernel in kernels:
        expected, _ = run(kernel, tree, grads)
        with jax.set_mesh(mesh):
            params = jax.device_put(tree, split)
            state = jax.jit(kernel.init)(params)
            for g in jax.device_put(grads, split):
                params, state = jax.jit(kernel.step)(params, state, g)
        assert params["w"].sharding == split and state.slots["momentum"]["w"].sharding == split
        np.testing.assert_allclose(params["w"], expected["w"], rtol=0, atol=1e-9)


@both
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_small_slots_are_split_along_the_axis_that_they_keep(make, kind):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    split = NamedSharding(mesh, PartitionSpec("data", None))
    kernel = make(0.1, rank=2)
    tree, grads = draw({"w": (16, 8)}, 0), gradients(2, {"w": (16, 8)})
    expected, _ = run(kernel, tree, grads)
    with jax.set_mesh(mesh):
        params, grads = jax.device_put(tree, split), [jax.device_put(g, split) for g in grads]
        state = jax.jit(kernel.init)(params)
        assert state.slots["momentum"]["w"].sharding.shard_shape((16, 2)) == (2, 2)
        for g in grads:
            params, state = jax.jit(kernel.step)(params, state, g)
    np.testing.assert_allclose(params["w"], expected["w"], rtol=0, atol=2e-5)


def test_a_wide_matrix_of_full_rank_is_turned_adam():
    """With all directions and one projection, a rotation of the rows."""
    params, grads = draw({"w": (3, 5)}, 0), gradients(1, {"w": (3, 5)})
    moved, state = run(jk.galore(0.1, rank=3, scale=1.0), params, grads)
    p = np.asarray(state.slots["projector"]["w"])
    np.testing.assert_allclose(p.T @ p, np.eye(3), atol=1e-6)
    turned, _ = run(jk.adam(0.1, epsilon=1e-6 / 1000**0.5), {"w": p.T @ params["w"]}, [{"w": p.T @ grads[0]["w"]}])
    np.testing.assert_allclose(p.T @ moved["w"], turned["w"], atol=1e-3)


@both
@pytest.mark.parametrize("wrong", [{"rank": 0}, {"rank": -1}, {"update_proj_gap": 0}], ids=str)
def test_what_is_refused(make, wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"`{name}` must be in \[1"):
        make(**wrong)


def test_a_rank_is_an_integer():
    with pytest.raises(TypeError, match="`rank` must be an integer"):
        jk.galore(rank=2.5)
    assert jnp.shape(jk.apollo(rank=1, scale=128.0, scale_type="tensor").init(jnp.ones((3, 5))).slots["length"]) == ()


@pytest.mark.usefixtures("x64")
def test_a_step_grows_from_the_one_before_as_it_was_cut():
    """Of a gradient that falls and grows tenfold, each step is cut until it is as long as it would be."""
    beta_2, sizes = 0.9, [1.0, 0.01, 1.0, 1.0, 1.0]
    kernel = jk.apollo(1.0, rank=2, beta_1=0.0, beta_2=beta_2, weight_decay=None)
    g, p = np.random.default_rng(0).normal(size=(4, 3)), {"w": jnp.zeros((4, 3))}
    reference = loop.Loop(apollo, {"w": np.zeros((4, 3))}, 1.0, rank=2, beta_1=0.0, beta_2=beta_2)
    state, lengths = kernel.init(p), []
    for t, size in enumerate(sizes, 1):
        before = p["w"]
        p, state = kernel.step(p, state, {"w": jnp.asarray(size * g)}, donate=False)
        np.testing.assert_allclose(p["w"], reference.step({"w": size * g})["w"], rtol=0, atol=1e-11)
        lengths.append(np.linalg.norm(p["w"] - before) / np.sqrt(1 - beta_2**t))
    assert lengths[1] < 0.1 * lengths[0]
    for last, this in zip(lengths[1:], lengths[2:], strict=False):
        np.testing.assert_allclose(this, 1.01 * (last + 1e-8), rtol=1e-10)


def test_shampoo_has_second_derivatives_before_its_roots():
    kernel, params, turn = jk.shampoo(0.1, precondition_frequency=4), draw({"w": (3, 4)}, 0)["w"], draw((3, 4), 1)

    def after(p):
        state = kernel.init(p)
        for _ in range(2):
            p, state = kernel.step(p, state, jnp.cos(p + turn), donate=False)
        return jnp.sum(jnp.sin(p))

    assert jnp.all(jnp.isfinite(jax.jvp(jax.grad(after), (params,), (turn,))[1]))
