"""Results that are known before a norm are written before it and read after it, if that moves fewer bytes."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras.engine.native import lower, unavailable
from jaxopt_keras.language import Rate, Rule, Signed
from tests.engine.native.cuda_grid import Grid
from tests.engine.native.test_cuda_grid import on
from tests.laws.cases import draw, pairs

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())

PARAMS = {"w": (40, 128), "v": (9000,)}
# Of each loop: the arrays that it reads, and those that it writes.
LOOPS: dict[str, tuple[Any, list[tuple[int, int]]]] = {
    "norms": (jk.lamb(), [(4, 2), (3, 1)]),
    "a clip before": (jk.lamb(global_clipnorm=1.0), [(2, 0), (3, 2), (3, 1)]),
    "an average": (jk.lamb(use_ema=True), [(4, 2), (4, 2)]),
    "in buffers": (jk.lamb(flat_state=True), [(4, 2), (3, 1)]),
    "slots that are rounded": (jk.lamb(state_dtype="bfloat16"), [(4, 0), (4, 3)]),
    "nothing is known before": (jk.adamw(global_clipnorm=1.0), [(1, 0), (4, 3)]),
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops_move_as_few_bytes_as_they_can(name, monkeypatch):
    kernel, expected = LOOPS[name]
    found = []

    class Fusion(lower.Fusion):
        def __init__(self, *args):
            super().__init__(*args)
            found.extend([(len(x.inputs), len(x.outputs)) for x in r.leaves.values()] for r in self.regions)

    monkeypatch.setattr(lower, "Fusion", Fusion)
    params = {"w": jax.ShapeDtypeStruct((40, 128), jnp.float32)}
    state = jax.eval_shape(kernel.program.init, params, kernel.hyper())
    jax.eval_shape(lower.native(kernel.program.bare_step), params, state, params, kernel.hyper())
    assert expected in found


class Behind(Rule):
    """Reads a new slot, and its old numbers, after a norm."""

    grain: ClassVar = "leaf"
    learning_rate: Rate = 0.1

    class State(NamedTuple):
        m: Signed
        v: Signed
        h: Signed

    def init(self, p):
        return self.State(*(jnp.full_like(p, x) for x in (0.1, 0.2, 0.3)))

    def update(self, g, p, s, at):
        m, v, h = 0.9 * s.m + g, 0.8 * s.v + g * g, 0.7 * s.h - g
        return -at.lr * (m / (1 + v) - s.m) / at.norm(m / (1 + v) + h), self.State(m, v, h)


@pytest.mark.parametrize("where", ["c", "grid"])
@pytest.mark.parametrize("flat", [False, True])
def test_no_loop_reads_what_another_has_overwritten(flat, where):
    kernel = jk.Kernel(Behind(), jk.Options(flat_state=flat))
    ours = theirs = (params := draw(PARAMS, 0)), kernel.init(params)
    grads, hyper = draw(PARAMS, 1), kernel.hyper()
    step = on(Grid(), kernel.program.bare_step, *ours, grads, hyper) if where == "grid" else kernel.compiled.step
    xla = jax.jit(kernel.program.bare_step)
    for _ in range(2):
        ours, theirs = step(*ours, grads, hyper), xla(*theirs, grads, hyper)
    for path, a, b in pairs((ours[0], ours[1].slots), (theirs[0], theirs[1].slots)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=path)
