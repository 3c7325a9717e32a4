"""Guards and accumulation by kernels that look at a predicate, on the played grid: no branch, and XLA's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras.engine.native import native, unavailable
from jaxopt_keras.engine.native.cuda import kernel as kernels
from tests.engine.native.cuda_grid import Grid
from tests.engine.native.test_cuda_grid import assert_near, both, on, shown
from tests.laws.cases import draw, operations, pairs

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())

SHAPES = {"w": (70, 128), "v": (9000,), "b": (17,), "one": (1,), "empty": (0, 3)}
EVERY, GRADIENTS = {"skip_nonfinite": True}, {"skip_nonfinite": "gradients"}
WINDOW = {"gradient_accumulation_steps": 2}
STEPS = {
    "gradients": (jk.adamw, GRADIENTS),
    "results": (jk.adamw, EVERY),
    "spikes": (jk.sgd, {"momentum": 0.9, "skip_spikes": 5.0}),
    "a window": (jk.adam, WINDOW),
    "a window, flat": (jk.adam, WINDOW | {"flat_state": True}),
    "results, flat": (jk.adam, EVERY | {"flat_state": True}),
    "a window of results": (jk.lion, EVERY | WINDOW | {"use_ema": True}),
    "clip": (jk.adamw, EVERY | WINDOW | {"global_clipnorm": 0.5}),
    "norms": (jk.lamb, GRADIENTS | {"clipnorm": 0.5}),
    "codes": (jk.adamw, EVERY | {"state_dtype": "int8", "master_weights": "bf16+8"}),
}


@pytest.mark.parametrize("name", STEPS)
def test_kernels_look_at_the_predicate(name):
    make, options = STEPS[name]
    kernel, grid = make(0.1, **options), Grid()
    ours = theirs = (params := draw(SHAPES, 0)), kernel.init(params)
    bad = draw(SHAPES, 3)
    bad["v"] = bad["v"].at[8000].set(jnp.nan if "spikes" not in name else 1e6)
    hyper = kernel.hyper()
    compiled, xla = on(grid, kernel.program.bare_step, *ours, params, hyper), jax.jit(kernel.program.bare_step)
    assert "conditional(" not in compiled.as_text() and "conditional(" in xla.lower(*ours, params, hyper).as_text("hlo")
    for seed, g in enumerate([None, None, bad, None, bad, None, None]):
        g, before = draw(SHAPES, seed, scale=0.1) if g is None else g, ours
        ours, theirs = compiled(*ours, g, hyper), xla(*theirs, g, hyper)
        if g is bad and "a window" != name.partition(",")[0]:
            for _, a, b in pairs((ours[0], ours[1].slots), (before[0], before[1].slots)):
                np.testing.assert_array_equal(a, b)
    for path, a, b in pairs(shown(kernel, *ours), shown(kernel, *theirs)):
        np.testing.assert_allclose(a.astype(float), b.astype(float), atol=4e-6, rtol=1e-5, err_msg=path)
    for path, a, b in pairs(ours[1]._replace(slots=()), theirs[1]._replace(slots=())):
        np.testing.assert_allclose(a, b, rtol=1e-6, err_msg=path)


# --- many arrays ----------------------------------------------------------------------------------------------------

MANY = {f"w{i:02}": (3 + i,) for i in range(20)} | {"m": (70, 128), "one": (1,)}
SCALARS = {
    "a norm of all": (jk.adamw, {"global_clipnorm": 0.5}),
    "norms": (jk.lamb, {"clipnorm": 0.5}),
    "both": (jk.lamb, {"global_clipnorm": 0.5, "skip_nonfinite": True, "state_dtype": "bfloat16"}),
    "in a buffer": (jk.lamb, {"clipnorm": 0.5, "flat_state": True}),
}


@pytest.mark.parametrize("where", ["grid", "c"])
@pytest.mark.parametrize("name", SCALARS)
def test_scalars_of_many_arrays(name, where):
    """A scalar of all arrays is one total, and one of each array a column: XLA has no equation for each array."""
    make, options = SCALARS[name]
    kernel = make(0.1, **options)
    params, grads, hyper = draw(MANY, 0), draw(MANY, 1), kernel.hyper()
    ours = theirs = params, kernel.init(params)
    grid = Grid(backwards=True)
    step = on(grid, kernel.program.bare_step, *ours, grads, hyper) if where == "grid" else kernel.compiled.step
    for _ in range(2):
        ours, theirs = step(*ours, grads, hyper), jax.jit(kernel.program.bare_step)(*theirs, grads, hyper)
    for path, a, b in pairs(shown(kernel, *ours), shown(kernel, *theirs)):
        np.testing.assert_allclose(a.astype(float), b.astype(float), atol=2e-6, rtol=1e-5, err_msg=path)
    assert where == "c" or grid.launched == {"a norm of all": 2, "norms": 3, "both": 6, "in a buffer": 3}[name]


def test_many_arrays_in_several_launches(monkeypatch):
    monkeypatch.setattr(kernels, "POINTERS", 60)
    kernels.source.cache_clear()
    try:
        test_scalars_of_many_arrays("a norm of all", "c")
        kernel, grid = jk.lamb(0.1, global_clipnorm=0.5), Grid()
        assert_near(kernel, *both(kernel, grid, MANY))
        assert grid.launched > 3
    finally:
        kernels.source.cache_clear()


@pytest.mark.parametrize("name", SCALARS)
def test_xla_has_no_equation_for_each_array(name):
    make, options = SCALARS[name]
    kernel = make(0.1, **options | {"flat_state": False})

    def arithmetic(count):
        params = {f"{i:03}": jax.ShapeDtypeStruct((10,), jnp.float32) for i in range(count)}
        state = jax.eval_shape(kernel.program.init, params, kernel.hyper())
        traced = jax.make_jaxpr(native(kernel.program.bare_step))(params, state, params, kernel.hyper())
        names = [e.primitive.name for e in operations(traced.jaxpr)]
        return sum(names.count(x) for x in ("add", "mul", "div", "sqrt", "select_n", "or", "max"))

    assert arithmetic(40) == arithmetic(20)


def test_single_numbers_in_packed_parameters_stay():
    """XLA writes them into the buffer after the loops, also if nothing is to be updated."""
    kernel, grid = jk.sgd(0.1, clipnorm=0.5, skip_nonfinite="gradients"), Grid()
    params = jk.pack(draw({"w": (70, 128), "one": (1,), "v": (9000,)}, 0))
    good, bad = (jax.tree.map(lambda p, x=x: jnp.full_like(p, x), params) for x in (1.0, jnp.inf))
    arguments = params, kernel.init(params), good, kernel.hyper()
    step, xla = on(grid, kernel.program.bare_step, *arguments), jax.jit(kernel.program.bare_step)
    assert "conditional(" not in step.as_text()
    for grads in (good, bad):
        found, expected = (f(params, arguments[1], grads, arguments[3])[0] for f in (step, xla))
        for _, a, b in pairs(found, expected):
            np.testing.assert_allclose(a, b, rtol=1e-6)
