"""Scalars of a step are computed in its kernels: XLA launches nothing beside them."""

import re
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras.engine.native import build, native, prologue, unavailable
from jaxopt_keras.engine.native.cuda import kernel as kernels
from jaxopt_keras.language import Rate, Rule
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


def after(count, kind):
    """A rate, by many equations one after the other."""
    rate = vector = jnp.array([0.1, 0.2, 0.3]) * count.astype(jnp.float32)
    for k in range(600):
        rate = jnp.where(count > k, 0.999 * rate, rate) if kind == "long" else vector * (2 - vector * rate)
    return rate[1]


@pytest.mark.parametrize("where", ["c", "grid"])
@pytest.mark.parametrize("kind", ["long", "branching"])
def test_schedules_of_any_length(kind, where):
    kernel, params = jk.sgd(lambda count: after(count, kind)), draw(SHAPES, 0)
    arguments = params, kernel.init(params), params, kernel.hyper()
    step = on(Grid(), kernel.program.bare_step, *arguments) if where == "grid" else kernel.compiled.step
    expected, _ = jax.jit(kernel.program.bare_step)(*arguments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), step(*arguments)[0], expected)


class Norms(Rule):
    """Divides by a sum over arrays that no total is."""

    grain: ClassVar = "leaf"
    learning_rate: Rate = 0.1

    class Sums(NamedTuple):
        norms: Any

    Scalars = Sums

    def scalars(self):
        return self.Scalars(0.0)

    def share(self, g, p, s, at):
        return self.Sums(at.norm(g))

    def advance(self, scalars, at):
        return self.Scalars(at.sums.norms)

    def update(self, g, p, s, at):
        return -at.lr * g / at.scalars.norms, s


@pytest.mark.parametrize("most", [128, 1000])
def test_kernels_have_no_more_parameters_than_they_can(most, monkeypatch, caplog):
    """XLA computes what is long, or runs a step of which it would still be too many."""
    monkeypatch.setenv("JAXOPT_KERAS_FALLBACK", "warn")
    monkeypatch.setattr(kernels, "POINTERS", 40)
    monkeypatch.setattr(prologue, "MOST", most)
    build.say.cache_clear()
    kernel, grid = jk.Kernel(Norms(), jk.Options()), Grid()
    assert_near(kernel, *both(kernel, grid, {f"w{i:02}": (5 + i,) for i in range(40)}))
    assert ("parameters, more than 40" in caplog.text) == (most == 1000)


class Elements(Rule):
    """Reads a number of a short vector, which arrays of other shapes compute in another way."""

    learning_rate: Rate = 0.1

    def update(self, g, p, s, at):
        first, second = jnp.array([1.0, 2.0]), jnp.array([3.0, 1.0])
        other = first + at.t if p.ndim == 1 else first * at.t
        same = first * at.t if p.ndim == 1 else second * at.t
        return -at.lr * jnp.exp(-other)[0] * jnp.exp(-same)[2 - p.ndim] * g, s


@pytest.mark.parametrize("where", ["c", "grid"])
@pytest.mark.parametrize("count", [2, 20])
def test_numbers_of_short_vectors(count, where):
    kernel, params = jk.Kernel(Elements(), jk.Options()), draw({f"w{i}": (20, 5)[: 1 + i % 2] for i in range(count)}, 0)
    arguments = params, kernel.init(params), params, kernel.hyper()
    step = on(Grid(), kernel.program.bare_step, *arguments) if where == "grid" else kernel.compiled.step
    expected, _ = jax.jit(kernel.program.bare_step)(*arguments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), step(*arguments)[0], expected)


def test_a_schedule_reads_an_array_that_is_traced():
    params = draw(SHAPES, 0)

    def step(table, engine):
        kernel = jk.sgd(lambda count: (table * (count + 1).astype(jnp.float32))[1], engine=engine)
        return kernel.step(params, kernel.init(params), params)[0]

    ours, theirs = (jax.jit(step, static_argnums=1)(jnp.array([0.1, 0.2]), x) for x in ("auto", "xla"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)


def test_a_scalar_takes_no_memory_of_another_dtype():
    double = lambda count, x: (2 * count.astype(jnp.float32), x * count.astype(jnp.float32))
    found = on(Grid(), double, *(arguments := (jnp.int32(3), jnp.ones(20))))(*arguments)
    assert float(found[0]) == 6 and found[1].tolist() == [3] * 20
