"""Rows of a sparse gradient: one native loop reads and writes them in place."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras.engine.native import unavailable
from tests.engine.native.cuda_grid import Grid
from tests.engine.native.test_cuda_grid import assert_near, on
from tests.engine.native.test_native import loops
from tests.laws.cases import assert_same_bits, draw

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())

SHAPES = {"table": (50, 8, 16), "narrow": (7, 1), "bias": (5,)}
OPTIONS = {
    "plain": {},
    "codes": {"state_dtype": "int8"},
    "pairs": {"state_dtype": "int4", "master_weights": "bf16+8"},
    "noise": {"state_dtype": "bfloat16", "rounding": "stochastic"},
    "average": {"use_ema": True, "clipvalue": 0.5},
    "guard": {"skip_nonfinite": True, "gradient_accumulation_steps": None},
    "norm": {"clipnorm": 0.5},  # sums over the rows: they are copied
}


def drawn(seed, dtype):
    return draw(SHAPES, seed, dtype)


def slices(seed, name, count, dtype):
    """Rows, some of them twice, some from the end, some that there are not."""
    shape, rng = SHAPES[name], np.random.default_rng(seed)
    indices = jnp.asarray(rng.integers(-shape[0] - 3, shape[0] + 3, count), jnp.int32)
    return jk.IndexedSlices(jnp.asarray(rng.normal(size=(count, *shape[1:])), dtype), indices, shape)


def gradients(seed, dtype):
    return {
        "table": slices(seed, "table", 40, dtype),
        "narrow": slices(seed, "narrow", 3, dtype),
        "bias": drawn(seed, dtype)["bias"],
    }


# Ftrl's slots are exact, whatever is asked for.
@pytest.mark.parametrize("name, options", [("adam", n) for n in OPTIONS] + [("ftrl", n) for n in ("plain", "average")])
def test_rows_equal_those_of_xla(name, options):
    dtype = jnp.bfloat16 if options in ("pairs", "noise") else jnp.float32
    params, results = drawn(0, dtype), []
    for engine in ("auto", "xla"):
        kernel = getattr(jk, name)(0.01, sparse="lazy", engine=engine, **OPTIONS[options])
        new, state = params, kernel.init(params)
        for seed in range(3):
            new, state = kernel.step(new, state, gradients(seed, dtype), donate=False)
        results.append((new, kernel.averaged(new, state), state))
    for path, (found, expected) in zip(
        jax.tree_util.tree_leaves_with_path(results[0]), zip(*map(jax.tree.leaves, results), strict=True), strict=True
    ):
        found, expected = np.asarray(found, float), np.asarray(expected, float)
        far = np.abs(found - expected) > 1e-5 * np.max(np.abs(expected), initial=0)
        coded = expected.dtype.kind in "iu" or options in ("codes", "pairs", "noise")
        assert np.sum(far) <= (2 if coded else 0), path[0]


@pytest.mark.parametrize("form", ["table", "switch"])
@pytest.mark.parametrize("options", OPTIONS)
def test_kernels_for_gpus_run_rows(options, form):
    """All in one launch, and in place; blocks in rows, and rows with sums, are XLA's."""
    dtype = jnp.bfloat16 if options in ("pairs", "noise") else jnp.float32
    kernel, params, grid = jk.adam(0.01, sparse="lazy", **OPTIONS[options]), drawn(0, dtype), Grid(form, True)
    grads, state = gradients(1, dtype), kernel.init(params)
    step = on(grid, kernel.program.bare_step, params, state, grads, kernel.hyper())
    found = expected = params, state
    for seed in range(3):
        found = step(*found, gradients(seed, dtype), kernel.hyper())
        expected = kernel.compiled.step(*expected, gradients(seed, dtype), kernel.hyper())
    assert_near(kernel, found, expected)
    assert sum("touched" in source for source in grid.seen) == (options != "norm")


def test_one_call_in_place():
    kernel, params = jk.adam(0.01, sparse="lazy"), {"table": drawn(0, jnp.float32)["table"]}
    state, grads = kernel.init(params), {"table": slices(1, "table", 40, jnp.float32)}
    assert loops(kernel.compiled.step, params, state, grads, kernel.hyper()) == 1
    text = kernel.compiled.step_donating.lower(params, state, grads, kernel.hyper()).compile().as_text()
    assert not re.search(r"8,16\]\S* (gather|copy)\(", text)


def test_what_no_row_is_stays():
    """Also what is not donated, and all of it where there are no rows."""
    kernel, params = jk.sgd(0.5, sparse="lazy"), jnp.arange(12.0).reshape(4, 3)
    state = kernel.init(params)
    for indices in ([], [4, 9, -5]):
        values = jnp.ones((len(indices), 3))
        new, _ = kernel.step(params, state, jk.IndexedSlices(values, jnp.array(indices, int), (4, 3)), donate=False)
        assert_same_bits(new, params)
    new, _ = kernel.step(params, state, jk.IndexedSlices(jnp.ones((3, 3)), jnp.array([1, -1, 1]), (4, 3)), donate=False)
    np.testing.assert_array_equal(new, params - jnp.array([0, 1.0, 0, 0])[:, None])
    empty = jnp.zeros((0, 3))
    new, _ = kernel.step(empty, kernel.init(empty), jk.IndexedSlices(jnp.ones((2, 3)), jnp.array([0, 1]), (0, 3)))
    assert new.shape == (0, 3)


@pytest.mark.parametrize("transform", ["vmap", "grad", "scan", "x64"])
def test_inside_transformations(transform):
    params = drawn(0, jnp.float32)["table"]
    values, indices = jnp.ones((3, 8, 16)), jnp.array([1, 4, 1])

    def run(engine):
        kernel = jk.adam(0.1, sparse="lazy", engine=engine)

        def step(p, v):
            return kernel.step(p, kernel.init(p), jk.IndexedSlices(v, indices, p.shape), donate=False)[0]

        if transform == "vmap":
            return jax.vmap(step, (None, 0))(params, jnp.stack([values, 2 * values]))
        if transform == "grad":
            return jax.grad(lambda v: jnp.sum(step(params, v) ** 2))(values)
        if transform == "scan":
            return jax.lax.scan(lambda p, _: (step(p, values), None), params, None, 3)[0]
        with jax.enable_x64(True):
            return step(jnp.asarray(params, jnp.float64), jnp.asarray(values, jnp.float64))

    np.testing.assert_allclose(run("auto"), run("xla"), rtol=1e-6, atol=1e-7)
