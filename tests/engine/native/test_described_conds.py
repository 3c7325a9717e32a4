"""`describe` says whether a guard is a predicate at which kernels look, or a branch, and why."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxopt_keras as jk
from jaxopt_keras.engine.native import backends, unavailable
from jaxopt_keras.engine.native.cuda.launch import InCuda
from tests.engine.native.cuda_grid import Grid
from tests.engine.native.test_cuda_grid import on

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())

SHAPES = {"w": (256, 128), "b": (128,)}
PARAMS = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in SHAPES.items()}
GUARD, WINDOW = {"skip_nonfinite": True}, {"gradient_accumulation_steps": 2}
PREDICATE = "a predicate inside the kernels, no branch"
STEPS = {  # the step, and what `describe` says about it on a GPU
    "no guard": (jk.adamw(), []),
    "a guard": (jk.adamw(**GUARD), [PREDICATE]),
    "a window": (jk.adamw(**WINDOW), [PREDICATE]),
    "both": (jk.lamb(**GUARD, **WINDOW), [PREDICATE]),
    "flat": (jk.adamw(**GUARD, flat_state=True), [PREDICATE]),
    "matrices": (jk.muon(**WINDOW), ["a branch (custom_partitioning)"]),
    "factors": (jk.adafactor(**GUARD), ["a branch (XLA runs abs)"]),
    "own": (jk.shampoo(), ["a branch (custom_partitioning)"]),
    "around": (jk.loss_scaled(jk.adamw()), ["a branch (`loss_scaled` decides around the step)"]),
    "groups": (jk.partition({"w": jk.adamw(**GUARD)}, default=jk.adamw()),
               ["a branch (one guard around several groups)"]),
}  # fmt: skip


def said(kernel, params=PARAMS):
    """The notes on each `cond`."""
    return [x.split(": ", 1)[1] for x in kernel.describe(params).notes if x.startswith("`cond` ")]


@pytest.mark.parametrize("name", STEPS)
def test_it_says_what_a_gpu_does(name, monkeypatch):
    kernel, expected = STEPS[name]
    step = kernel.program.bare_step if hasattr(kernel.program, "bare_step") else kernel.program.step
    state = jax.eval_shape(kernel.program.init, PARAMS, kernel.hyper())
    text = on(Grid(), step, PARAMS, state, PARAMS, kernel.hyper()).as_text()
    assert ("conditional(" in text) == any(x.startswith("a branch") for x in expected)
    monkeypatch.setitem(backends.BACKENDS, "cpu", InCuda(Grid()))
    assert said(kernel) == expected


def test_a_cpu_takes_the_branch():
    assert said(STEPS["a guard"][0]) == ["a branch (on cpu)"]
    assert said(STEPS["no guard"][0]) == []


def test_what_kernels_cannot_do_is_the_reason(monkeypatch):
    class Grids(InCuda):
        def refuses(self, leaf):
            return "2^31 elements or more" if leaf.count == 128 else ""

    monkeypatch.setitem(backends.BACKENDS, "cpu", Grids(Grid()))
    assert said(STEPS["a guard"][0]) == ["a branch (XLA updates an array: 2^31 elements or more)"]


def test_several_devices_take_the_branch(monkeypatch):
    monkeypatch.setitem(backends.BACKENDS, "cpu", InCuda(Grid()))
    where = NamedSharding(jax.make_mesh((8,), ("x",), (jax.sharding.AxisType.Auto,)), PartitionSpec("x"))
    params = {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where) for k, x in PARAMS.items()}
    assert said(STEPS["a guard"][0], params) == ["a branch (on several devices)"]
