"""Results that are known before a norm are written before it and read after it, if that moves fewer bytes."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras.engine.native import lower, native, unavailable
from jaxopt_keras.language import Rate, Rule, Signed
from tests.engine.native.cuda_grid import Grid
from tests.engine.native.test_cuda_grid import on
from tests.laws.cases import draw, every_rule, pairs

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


class Repeated(Rule):
    """Keeps the greatest number of each row, once for each of its elements."""

    grain: ClassVar = "matrix"
    learning_rate: Rate = 0.1

    class State(NamedTuple):
        top: Signed

    def init(self, p):
        return self.State(jnp.zeros_like(p))

    def update(self, g, p, s, at):
        top = jnp.max(jnp.abs(g), -1, keepdims=True)
        step = (g + s.top) / (1 + top)
        return -at.lr * step / at.norm(step), self.State(jnp.broadcast_to(top, g.shape))


def test_numbers_of_rows_are_not_read_as_elements():
    kernel, params, grads = jk.Kernel(Repeated(), jk.Options()), draw(PARAMS, 0), draw(PARAMS, 1)
    arguments = params, kernel.init(params), grads, kernel.hyper()
    ours, theirs = (jax.jit(f)(*arguments) for f in (native(kernel.program.bare_step), kernel.program.bare_step))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)


def mapped(kernel, function):
    """The function of a step, for two trees of gradients, and its arguments."""
    params, hyper = draw({"w": (4, 8), "u": (4, 8), "v": (30,)}, 0), kernel.hyper()
    step = lambda g: function(params, kernel.program.init(params, hyper), g, hyper)
    return jax.vmap(step), jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params)


@every_rule
def test_any_rule_with_a_flat_state_is_mapped(case):
    """A loop writes a slot early, in the shape that the buffer has. XLA computes with the slot in its own shape."""
    kernel = case.kernel(flat_state=True)
    jax.eval_shape(*mapped(kernel, native(kernel.program.bare_step)))


@pytest.mark.parametrize("compiled", [True, False])
def test_xla_reads_what_is_written_early(compiled):
    kernel = jk.lamb(0.1, flat_state=True)
    (ours, grads), (theirs, _) = (
        mapped(kernel, f) for f in (native(kernel.program.bare_step), kernel.program.bare_step)
    )
    found, expected = (jax.jit(ours) if compiled else ours)(grads), jax.jit(theirs)(grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)
