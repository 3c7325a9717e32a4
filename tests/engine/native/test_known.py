"""Totals and scalars of many arrays stay arrays: XLA compiles no kernel for each one."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras.engine.native import call, native, prologue, unavailable
from jaxopt_keras.engine.native.ir import Value
from jaxopt_keras.engine.native.known import Known
from jaxopt_keras.language import Rate, Rule
from tests.laws.cases import draw, pairs

needs_loops = pytest.mark.skipif(bool(unavailable()), reason=unavailable())


class Kept(Rule):
    """Divides by a sum that keeps its axes."""

    grain: ClassVar = "leaf"
    learning_rate: Rate = 0.1

    def update(self, g, p, s, at):
        return -at.lr * g / (1 + jnp.sum(g * g, keepdims=True)), s


KERNELS = {
    "norms": jk.lamb(0.1),
    "lars": jk.lars(0.1),
    "a clip of each": jk.adamw(0.1, clipnorm=0.5),
    "a clip of all": jk.lamb(0.1, global_clipnorm=0.5),
    "a bounded sum": jk.dog(0.1),
    "bfloat16": jk.lamb(0.1, state_dtype="bfloat16"),
    "a guard": jk.lamb(0.1, skip_nonfinite=True),
    "in a buffer": jk.lamb(0.1, flat_state=True),
    "random bits": jk.lion(0.1, state_dtype="int8", rounding="stochastic"),
}


def fusions(kernel, count):
    params = {f"{i:03}": jax.ShapeDtypeStruct((16, 8), jnp.float32) for i in range(count)}
    state = jax.eval_shape(kernel.program.init, params, kernel.hyper())
    step = jax.jit(native(kernel.program.bare_step), donate_argnums=(0, 1))
    return step.lower(params, state, params, kernel.hyper()).compile().as_text().count(" fusion(")


@needs_loops
@pytest.mark.parametrize("name", KERNELS)
def test_xla_compiles_no_kernel_for_each_array(name, monkeypatch):
    one_call = fusions(KERNELS[name], 20)
    assert fusions(KERNELS[name], 40) == one_call
    monkeypatch.setattr(call, "AT_ONCE", 20)
    assert fusions(KERNELS[name], 40) <= one_call + 8  # in two calls


@needs_loops
@pytest.mark.parametrize("name", ["a clip of all", "a bounded sum"])
def test_sums_over_arrays_are_results_of_loops(name):
    def additions(count):
        kernel, params = KERNELS[name], {f"{i:03}": jnp.ones((16, 8)) for i in range(count)}
        arguments = params, kernel.init(params), params, kernel.hyper()
        return str(jax.make_jaxpr(native(kernel.program.bare_step))(*arguments)).count(" add ")

    assert additions(30) == additions(20)


@needs_loops
@pytest.mark.parametrize(("long", "at_once"), [(16, 7), (2, 7), (2, 1)])
@pytest.mark.parametrize("name", [*KERNELS, "kept axes"])
def test_the_numbers_are_those_of_xla(name, long, at_once, monkeypatch):
    monkeypatch.setattr(prologue, "LONG", long)
    monkeypatch.setattr(call, "AT_ONCE", at_once)
    kernel = KERNELS.get(name) or jk.Kernel(Kept(), jk.Options())
    shapes = {f"w{i:02}": (3 + i, 2) for i in range(17)} | {"m": (70, 128), "one": (1,), "scalar": (), "empty": (0, 3)}
    params, grads, hyper = draw(shapes, 0), draw(shapes, 1), kernel.hyper()
    ours, theirs = (
        jax.jit(f)(params, kernel.init(params), grads, hyper)
        for f in (native(kernel.program.bare_step), kernel.program.bare_step)
    )
    for path, a, b in pairs(ours, theirs):
        np.testing.assert_allclose(a.astype(float), b.astype(float), atol=2e-6, rtol=1e-5, err_msg=path)


def test_arrays_are_put_together_from_spans():
    a, b, c, d, e, f = (Value(jax.typeof(jnp.float32(0))) for _ in range(6))
    values = [np.arange(3, dtype="f"), np.arange(3.0, 5), np.float32(9), jnp.ones((1, 1))]
    known = Known([(a, b, c), (d, None), e, f], values)
    assert [float(known[x]) for x in (a, b, c, d, e)] == [0, 1, 2, 3, 9]
    for names, expected in {
        (a, b, c): [0, 1, 2], (b, c, d): [1, 2, 3], (e, d, a, b, f): [9, 3, 0, 1, 1], (a, a): [0, 0], (c, b): [2, 1],
    }.items():  # fmt: skip
        found = known[names]
        assert found.tolist() == expected and found.dtype == jnp.float32
    with pytest.raises(KeyError):
        known[Value(a.aval)]
