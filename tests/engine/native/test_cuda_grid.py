"""The kernels for GPUs, run by their own source on a grid that is played on a CPU, give XLA's numbers.

`tests/laws/test_kernels_equal_loops.py` does that for every rule and option.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras.engine.native import Unavailable, backends, native, unavailable
from jaxopt_keras.engine.native.cuda import kernel as kernels
from jaxopt_keras.engine.native.cuda import launch
from jaxopt_keras.engine.native.cuda.launch import InCuda
from jaxopt_keras.engine.slot_storage import Stored, dequantize
from jaxopt_keras.language import Rate, Rule
from jaxopt_keras.packing.trees import unpacked
from tests.engine.native.cuda_grid import Grid
from tests.laws.cases import assert_same_bits, draw, pairs, slots_at

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())

SHAPES = {"w": (33, 128), "half": (64, 80), "v": (4099,), "b": (17,), "one": (1,), "empty": (0, 3)}
CODED = {"state_dtype": "int8", "rounding": "stochastic", "master_weights": "bf16+8"}
OPTIONS = [
    {}, CODED, {"global_clipnorm": 0.5}, {"clipnorm": 0.5, "use_ema": True}, {"state_dtype": "int4"},
    {"gradient_accumulation_steps": 2, "state_dtype": "bfloat16"}, {"flat_state": True}, {"state_dtype": "float8"},
    {"state_dtype": "float16", "skip_nonfinite": True},
]  # fmt: skip


def on(grid, function, *args):
    """A function with its loops on a grid, compiled for these arguments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backends.BACKENDS, "cpu", InCuda(grid))
        return jax.jit(native(function)).lower(*args).compile()


def both(kernel, grid, shapes=SHAPES, dtype=jnp.float32):
    """The parameters and the state after two steps, by the grid and by XLA."""
    step = kernel.program.bare_step
    ours = theirs = (params := draw(shapes, 0, dtype)), kernel.init(params)
    grads, hyper = [draw(shapes, seed, dtype, 0.1) for seed in (1, 2)], kernel.hyper()
    compiled, xla = on(grid, step, *ours, grads[0], hyper), jax.jit(step)
    for g in grads:
        ours, theirs = compiled(*ours, g, hyper), xla(*theirs, g, hyper)
    return jax.block_until_ready((ours, theirs))


def shown(kernel, params, state):
    """The parameters and the slots, dequantized."""
    state = state._replace(slots=unpacked(state.slots))
    return {k: dequantize(kernel.options, Stored(p, slots_at(state, k)), jnp.float32) for k, p in params.items()}


def assert_near(kernel, ours, theirs):
    """Equal but for a few last places, and for the seldom code that these change."""
    for path, a, b in pairs(shown(kernel, *ours), shown(kernel, *theirs)):
        a, b = a.astype(float), b.astype(float)
        assert np.sum(np.abs(a - b) > 4e-6 * np.max(np.abs(b), initial=0)) <= 1e-3 * b.size, path


def test_the_order_of_thread_blocks_is_of_no_consequence():
    kernel, shapes = jk.lamb(0.1, global_clipnorm=0.5), {"w": (40, 250), "v": (40000,)}
    params = draw(shapes, 0)
    arguments = params, kernel.init(params), draw(shapes, 1), kernel.hyper()
    assert_same_bits(*(on(Grid(backwards=x), kernel.program.bare_step, *arguments)(*arguments) for x in (False, True)))


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_blocks_of_any_length(form):
    lengths = (241, 250, 120)  # a row of a thread has one, two, four elements
    kernel = jk.adam(0.1, state_dtype=form)
    assert_near(kernel, *both(kernel, Grid(), {f"{n}": (-(-4200 // n), n) for n in lengths}))


@pytest.mark.parametrize("limit", [{"POINTERS": 40}, {"WORDS": 80}], ids=str)
def test_more_arrays_than_one_launch_takes(limit, monkeypatch):
    grid, kernel = Grid(), jk.lamb(0.1, clipnorm=0.5, flat_state="WORDS" in limit)
    for name, value in limit.items():
        monkeypatch.setattr(kernels, name, value)
    kernels.source.cache_clear()
    assert_near(kernel, *both(kernel, grid, {f"w{i}": (5 + i,) for i in range(9)}))
    assert grid.launched > 3
    kernels.source.cache_clear()


def test_the_source_does_not_depend_on_where_arrays_are():
    """One array of its own, one in a packed buffer; the slots of one array in one buffer, and in two."""
    sources, launched = set[str](), 0
    for kernel, shapes in [
        (jk.adam(0.1), {"w": (5, 7)}),
        (jk.adam(0.1, flat_state=True), {"w": (5, 7), "v": (70000,)}),
    ]:
        grid = Grid(seen=sources)
        assert_near(kernel, *both(kernel, grid, shapes))
        launched += grid.launched
    assert launched == 2 and len(sources) == 1


def test_wide_types(x64):
    kernel = jk.adamw(0.1, global_clipnorm=0.5)
    assert_near(kernel, *both(kernel, Grid(), dtype=jnp.float64))


def test_what_a_kernel_cannot_do_is_left_to_xla(monkeypatch):
    rows = jk.IndexedSlices(jnp.ones((3, 128)), jnp.array([1, 4, 1]), (50, 128))
    kernel, grid, params = jk.adam(0.1, sparse="lazy", state_dtype="int8"), Grid(), jnp.ones((50, 128))
    arguments = params, kernel.init(params), rows, kernel.hyper()
    found, expected = on(grid, kernel.program.bare_step, *arguments)(*arguments), kernel.program.bare_step(*arguments)
    assert not grid.launched
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


class Alone(Rule):
    """Has a norm for a vector, and for a matrix whether something is true of all its elements."""

    grain: ClassVar = "matrix"
    learning_rate: Rate = 0.1

    def update(self, g, p, s, at):
        step = g / (at.norm(g) if p.ndim == 1 else 1) / at.t
        return -at.lr * (step if p.ndim == 1 else jnp.where(jnp.all(g < 9), step, 0)), s


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("options", [{}, {"skip_nonfinite": True}, {"flat_state": True}], ids=str)
def test_xla_runs_a_kernel_that_cannot_be_compiled(options, bad, monkeypatch):
    monkeypatch.setenv("JAXOPT_KERAS_FALLBACK", "warn")
    kernel, params = jk.Kernel(Alone(), jk.Options(**options)), draw({"w": (40, 8), "v": (9,), "u": (300,)}, 0)
    grads = {**draw({"w": (40, 8), "v": (9,), "u": (300,)}, 1), **({"v": jnp.full(9, jnp.nan)} if bad else {})}
    arguments = params, kernel.init(params), grads, kernel.hyper()
    grid = Grid()
    monkeypatch.setattr(grid, "launch", lambda *_: (_ for _ in ()).throw(Unavailable("no compiler today")))
    found, expected = on(grid, kernel.program.bare_step, *arguments)(*arguments), kernel.program.bare_step(*arguments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), found, expected)


def test_a_plan_says_what_a_kernel_cannot_do(monkeypatch):
    monkeypatch.setattr(launch, "MOST", 100)
    monkeypatch.setitem(backends.BACKENDS, "cpu", InCuda(Grid()))
    kernel, params = jk.sgd(0.1), {"w": jnp.ones((10, 8)), "large": jnp.ones((50, 8))}
    engines = {path: group.kind.engine for group in kernel.describe(params).groups for path in group.paths}
    assert engines == {"w": "native", "large": "xla (2^31 elements or more)"}
    step = native(kernel.program.bare_step, strict=True)
    with pytest.raises(Unavailable, match='`engine="native"` cannot run here: 2.31 elements or more'):
        jax.jit(step).lower(params, kernel.init(params), params, kernel.hyper())


# --- faults ---------------------------------------------------------------------------------------------------------

WRONG = {
    "a sum without a barrier": (
        "  __syncthreads();\n  if (threadIdx.x == 0)\n    for",
        "  if (threadIdx.x == 0)\n    for",
    ),
    "one chunk is left out": ("c = from + threadIdx.x % 32;", "c = from + 1 + threadIdx.x % 32;"),
    "a row is stored in the place of its neighbour": ("store<4, whole>(Y0 + at[0]", "store<4, whole>(Y0 + at[1]"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_faults_are_found(fault):
    kernel, grid = jk.sgd(0.1, global_clipnorm=0.5), Grid(changes=(WRONG[fault],))
    found = both(kernel, grid, {"w": (4096,)})
    assert grid.changed
    with pytest.raises(AssertionError):
        assert_near(kernel, *found)


def test_a_thread_that_does_not_arrive_is_an_error():
    shuffle = "x = MAX(x, __shfl_xor_sync(~0u, x, o));"
    changes = ((shuffle, f"if (threadIdx.x != 5) {shuffle}"),)
    with pytest.raises(jax.errors.JaxRuntimeError, match="wait for others that do not arrive"):
        both(jk.sgd(0.1, momentum=0.9, state_dtype="int8"), Grid(changes=changes), {"w": (64, 64)})
