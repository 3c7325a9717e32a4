"""Scalars of a step are computed in its kernels: XLA launches nothing beside them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras.engine.native import native, unavailable
from jaxopt_keras.engine.native.cuda import kernel as kernels
from tests.engine.native.cuda_grid import Grid
from tests.engine.native.test_cuda_grid import assert_near, both, on
from tests.laws.cases import draw

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())

SHAPES = {"w": (33, 128), "v": (9000,), "b": (17,)}
CODED = {"state_dtype": "int8", "rounding": "stochastic", "master_weights": "bf16+8"}
STEPS = {  # the step, and its launches
    "a rate": (jk.sgd(0.1), 1),
    "a count": (jk.adamw(), 1),
    "a product": (jk.nadam(), 1),
    "a schedule": (jk.adamw(jk.schedules.CosineDecay(0.1, 100)), 1),
    "random bits": (jk.adamw(**CODED), 1),
    "an average": (jk.adamw(use_ema=True), 1),
    "a norm": (jk.adamw(global_clipnorm=0.5), 2),
    "a norm of each": (jk.adamw(clipnorm=0.5), 2),
    "norms": (jk.lamb(global_clipnorm=0.5), 3),
    "a sum": (jk.prodigy(), 2),
    "packed": (jk.adamw(flat_state=True), 1),
}


@pytest.mark.parametrize("name", STEPS)
def test_xla_runs_nothing_beside_the_kernels(name):
    (kernel, launches), grid, params = STEPS[name], Grid(), draw(SHAPES, 0)
    step = on(grid, kernel.program.bare_step, params, kernel.init(params), params, kernel.hyper())
    entry = step.as_text().split("\nENTRY")[1]
    found = set(re.findall(r" ([a-z\-]+)\(", entry))
    assert grid.launched == launches
    # On a CPU XLA copies results that alias no donated argument, and copies with small loops.
    assert found <= {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "copy", "custom-call"}, entry


@pytest.mark.parametrize("form", ["table", "switch"])
@pytest.mark.parametrize("name", STEPS)
def test_the_numbers_are_those_of_xla(name, form):
    kernel, _ = STEPS[name]
    ours, theirs = both(kernel, Grid(form, backwards=form == "switch"), SHAPES)
    assert_near(kernel, ours, theirs)
    for a, b in zip(*(jax.tree.leaves((x.count, x.scalars)) for _, x in (ours, theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_what_kernels_have_no_form_for_is_computed_before_them():
    kernel, grid = jk.sgd(lambda count: 0.1 * 0.5 ** (count // 2).astype(jnp.float32)), Grid()
    assert_near(kernel, *both(kernel, grid, SHAPES))
    assert grid.launched == 1


def test_the_last_launch_writes_the_new_scalars(monkeypatch):
    monkeypatch.setattr(kernels, "POINTERS", 40)
    grid, kernel = Grid(), jk.nadam(clipnorm=0.5)
    ours, theirs = both(kernel, grid, {f"w{i}": (5 + i,) for i in range(9)})
    assert grid.launched > 3 and int(ours[1].count) == 2
    assert_near(kernel, ours, theirs)


def test_a_count_that_is_not_mapped_stays_one():
    kernel, params = jk.adam(), {"w": jnp.ones((3, 40))}
    state = kernel.init({"w": params["w"][0]})
    mapped = state._replace(slots=jax.tree.map(lambda x: jnp.stack([x] * 3), state.slots))
    axes = jax.tree.map(lambda _: 0, state)._replace(count=None)
    step = jax.vmap(native(kernel.program.bare_step), (0, axes, 0, None), (0, axes))
    assert int(jax.jit(step)(params, mapped, params, kernel.hyper())[1].count) == 1
