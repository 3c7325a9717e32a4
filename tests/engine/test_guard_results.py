"""A step whose results are not finite, though its gradients are, is refused as a whole, in every way to take a step."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxopt_keras as jk
from jaxopt_keras.engine.native.backends import none_is_available
from jaxopt_keras.engine.stages.guard import SKIPPED
from jaxopt_keras.language import Rate, Rule, Signed
from tests.laws.cases import assert_same_bits


class Inverse(Rule):
    """p <- p - lr / g: infinite where a gradient is 0."""

    learning_rate: Rate = 1.0

    def update(self, g, p, s, at):
        return -at.lr / g, s


class Kept(Rule):
    """p <- p - g, and a slot that overflows before the parameter does, and is NaN for a gradient of 0."""

    learning_rate: Rate = 1.0

    class State(NamedTuple):
        product: Signed

    def init(self, p):
        return self.State(jnp.zeros_like(p))

    def update(self, g, p, s, at):
        return -g, self.State(s.product + g * g * g + 0 / g)


SHAPES = {"matrix": (3, 40), "vector": (5,), "one": (1,), "scalar": (), "empty": (0, 2)}
SHAPES |= {f"w{i}": (4, 6) for i in range(6)}


def tree(value, dtype=jnp.float32):
    return {name: jnp.full(shape, value, dtype) for name, shape in SHAPES.items()}


def spoilt(grads, value, name="matrix"):
    """The gradients with `value` in the last place of one array."""
    return grads | {name: grads[name].at[(-1,) * grads[name].ndim].set(value)}


class Fault(NamedTuple):
    make: object  # of a kernel, from options
    bad: float  # a finite gradient whose result is not finite
    dtype: str = "float32"


FAULTS = {
    "overflow": Fault(functools.partial(jk.sgd, 1e30), 1e20),
    "division": Fault(lambda **o: jk.Kernel(Inverse(learning_rate=0.5), jk.Options(**o)), 0.0),
    "slot": Fault(lambda **o: jk.Kernel(Kept(learning_rate=0.5), jk.Options(**o)), 1e13),
    "nan slot": Fault(lambda **o: jk.Kernel(Kept(learning_rate=0.5), jk.Options(**o)), 0.0),
    "bfloat16": Fault(functools.partial(jk.sgd, 3.4e38), 1.0, "bfloat16"),
    "float16": Fault(functools.partial(jk.sgd, 70000.0), 1.0, "float16"),
    "optax": Fault(lambda **o: jk.Kernel.from_optax(optax.scale_by_learning_rate(1e30), **o), 1e20),
}
ENGINES = ["xla", pytest.param("auto", marks=pytest.mark.skipif(none_is_available(), reason="no native loops"))]


def good_of(fault):
    return tree(1e-4 if "16" in fault.dtype else 0.5, fault.dtype)


def apart(state):
    """The state without the counter of skipped calls."""
    return state._replace(scalars={n: x for n, x in state.scalars.items() if n != SKIPPED})


def check(kernel, params, good, bad, step=None):
    """A bad call between good ones changes nothing but the counter, which must be 1."""
    step = step or functools.partial(kernel.step, donate=False)
    before = step(*step(params, kernel.init(params), good), good)
    q, t = step(*before, bad)
    assert int(t.scalars[SKIPPED]) == 1 and int(before[1].scalars[SKIPPED]) == 0
    assert_same_bits((q, apart(t)), (before[0], apart(before[1])))
    assert_same_bits(step(q, t, good)[0], step(*before, good)[0])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", FAULTS)
def test_step(name, engine):
    fault = FAULTS[name]
    good = good_of(fault)
    check(fault.make(skip_nonfinite=True, engine=engine), tree(1.0, fault.dtype), good, spoilt(good, fault.bad))


@pytest.mark.parametrize("where", ["vector", "one", "scalar", "w5"])
def test_every_array_is_looked_at(where):
    fault = FAULTS["overflow"]
    check(fault.make(skip_nonfinite=True), tree(1.0), good_of(fault), spoilt(good_of(fault), fault.bad, where))


def overflowing(**options):
    """Adam without averages, whose step is 3.4e38 for any gradient but 0."""
    return jk.adam(3.4e38, beta_1=0.0, beta_2=0.0, epsilon=1e-30, skip_nonfinite=True, **options)


def overflows(dtype=jnp.float32):
    """Parameters, and gradients that move none of them and all beyond what is finite."""
    return tree(-1e37, dtype), tree(0.0, dtype), spoilt(tree(0.0, dtype), 1.0)


WITH = {
    "masters": ({"master_weights": "float32"}, "bfloat16"),
    "corrections": ({"master_weights": "bf16+8"}, "bfloat16"),
    "stochastic": ({"rounding": "stochastic"}, "bfloat16"),
    "average": ({"use_ema": True}, "float32"),
    "clip": ({"clipvalue": 3e38}, "float32"),
    "int8": ({"state_dtype": "int8"}, "float32"),
    "constraint": ({"constraints": {"matrix": lambda p: p * 1.0}}, "float32"),
    "flat": ({"flat_state": True}, "float32"),
    "spikes": ({"skip_spikes": 1e30}, "float32"),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", WITH)
def test_options(name, engine):
    options, dtype = WITH[name]
    check(overflowing(engine=engine, **options), *overflows(dtype))


FORMATS = ["bfloat16", "float16", "float8", "int8", "int4"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("state_dtype", FORMATS)
@pytest.mark.parametrize("groups", [False, True])
def test_a_slot_in_few_bits(state_dtype, engine, groups):
    """The result of the rule counts, also where its NaN or infinity would become a finite code."""
    kernel = FAULTS["nan slot"].make(skip_nonfinite=True, state_dtype=state_dtype, engine=engine)
    kernel = jk.partition({"w": kernel}) if groups else kernel
    params, good = {"w": jnp.ones((64, 64))}, {"w": jnp.ones((64, 64))}
    for bad in (0.0, 1e13):
        check(kernel, params, good, {"w": good["w"].at[3, 5].set(bad)})


@pytest.mark.parametrize("dtype", ["float64", "complex64", "complex128"])
def test_dtypes(dtype):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        size, bad = (1e30, 1e20) if dtype == "complex64" else (1e300, 1e200)
        kernel = jk.sgd(size, skip_nonfinite=True)
        params, good = tree(1.0, dtype), tree(0.5, dtype)
        check(kernel, params, good, spoilt(good, bad * 1j if "complex" in dtype else bad))


@pytest.mark.parametrize("eager", [False, True])
def test_jit_and_eager(eager):
    kernel = overflowing()
    params, good, bad = overflows()
    with jax.disable_jit(eager):
        check(kernel, params, good, bad, step=jax.jit(kernel.step))


@pytest.mark.parametrize("name", ["matrix", "w5"])
def test_infinity_that_is_clipped_to_finite_results_is_refused(name):
    """Gradients count too, whatever becomes of them."""
    kernel = jk.sgd(0.5, clipvalue=1.0, skip_nonfinite=True)
    check(kernel, tree(1.0), tree(0.5), spoilt(tree(0.5), jnp.inf, name))


def added(kernel):
    """A step by `update`, as with optax."""

    def step(params, state, grads):
        updates, state = kernel.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["overflow", "division", "slot", "optax"])
def test_update(name, engine):
    fault = FAULTS[name]
    kernel, good = fault.make(skip_nonfinite=True, engine=engine), good_of(fault)
    check(kernel, tree(1.0), good, spoilt(good, fault.bad), step=added(kernel))


def test_an_amount_that_is_finite_makes_a_sum_that_is_not():
    kernel = jk.sgd(1.0, skip_nonfinite=True)
    check(kernel, tree(-3e38), tree(0.0), spoilt(tree(0.0), 1e38), step=added(kernel))


def test_update_without_parameters():
    kernel = jk.sgd(1e30, skip_nonfinite=True)
    updates, state = kernel.update({"w": jnp.array([1.0, 1e20])}, kernel.init({"w": jnp.ones(2)}))
    assert updates["w"].tolist() == [0, 0] and state.scalars[SKIPPED] == 1


def test_packed():
    kernel = overflowing()
    check(kernel, *(jk.pack(x) for x in overflows()))


GROUPS = {
    "the bad one": lambda: jk.partition({"matrix": overflowing()}, default=jk.sgd(0.5, momentum=0.5)),
    "the guard elsewhere": lambda: jk.partition(
        {"matrix": jk.adam(3.4e38, beta_1=0.0, beta_2=0.0, epsilon=1e-30)}, default=jk.sgd(0.5, skip_nonfinite=True)
    ),
    "frozen": lambda: jk.partition({"vector": jk.frozen()}, default=overflowing()),
    "scaled": lambda: jk.loss_scaled(overflowing(), 1.0),
    "scaled groups": lambda: jk.loss_scaled(jk.partition({"matrix": overflowing()}, default=jk.sgd(0.5)), 1.0),
}


@pytest.mark.parametrize("name", GROUPS)
def test_groups(name):
    """One group's result skips the step of all."""
    params, good, bad = overflows()
    moves = good | {"w0": jnp.ones((4, 6)), "vector": jnp.ones(5)} if "w0" in params and "group" in name else good
    kernel = GROUPS[name]()
    if name.startswith("scaled"):
        step = functools.partial(kernel.step, donate=False)
        p, s = step(params, kernel.init(params), good)
        q, t = step(p, s, bad)
        assert t.scalars[SKIPPED] == 1 and t.count == s.count == 1
        assert_same_bits((q, t.slots), (p, s.slots))
    else:
        check(kernel, params, moves, bad)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("wrap", [lambda k: k, lambda k: jk.partition({"matrix": k}, default=k)], ids=["one", "groups"])
@pytest.mark.parametrize("way", ["step", "update"])
def test_a_window_of_accumulation_starts_anew(engine, wrap, way):
    """The sum of a window that cannot be applied would be refused in every later call too."""
    kernel = wrap(overflowing(engine=engine, gradient_accumulation_steps=2))
    params, good, bad = overflows()
    step = functools.partial(kernel.step, donate=False) if way == "step" else added(kernel)
    p, s = params, kernel.init(params)
    for grads, count, skipped in [(good, 0, 0), (good, 1, 0), (bad, 1, 0), (good, 1, 1), (good, 1, 1), (good, 2, 1)]:
        p, s = step(p, s, grads)
        assert (int(s.count), int(s.scalars[SKIPPED])) == (count, skipped)
        assert_same_bits(p, params)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_sum_of_gradients_overflows(engine):
    """In the middle of a window: the call is refused."""
    kernel = jk.sgd(1e-3, skip_nonfinite=True, gradient_accumulation_steps=3, engine=engine)
    params = tree(1.0)
    p, s = params, kernel.init(params)
    for grads in (tree(3e38), tree(3e38)):
        p, s = kernel.step(p, s, grads, donate=False)
    assert s.scalars[SKIPPED] == 1 and all(np.isfinite(x).all() for x in jax.tree.leaves((p, s)))


@pytest.mark.parametrize("engine", ENGINES)
def test_lazy_rows(engine):
    kernel = overflowing(sparse="lazy", engine=engine)
    params = {"w": jnp.full((6, 3), -1e37), "b": jnp.full(3, -1e37)}
    rows = lambda x: {"w": jk.IndexedSlices(jnp.full((3, 3), x), jnp.array([4, 1, 4]), (6, 3)), "b": jnp.zeros(3)}
    check(kernel, params, rows(0.0), rows(1.0))


def test_rows_that_are_not_there():
    """Numbers past the end are dropped, whatever their rows would become."""
    kernel = jk.Kernel(Inverse(learning_rate=0.5), jk.Options(skip_nonfinite=True, sparse="lazy"))
    grads = jk.IndexedSlices(jnp.array([[1.0, 1.0], [0.0, 0.0]]), jnp.array([1, 7]), (3, 2))
    params = jnp.ones((3, 2))
    params, state = kernel.step(params, kernel.init(params), grads, donate=False)
    assert state.scalars[SKIPPED] == 0 and params.tolist() == [[1, 1], [0.5, 0.5], [1, 1]]


@pytest.mark.parametrize("axes", [("data",), (None, "data")])
def test_sharded(axes):
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    put = lambda x: jax.device_put(
        x, NamedSharding(mesh, PartitionSpec(*axes) if x.shape == (4, 40) else PartitionSpec())
    )
    params = {"w": jnp.full((4, 40), -1e37), "b": jnp.full(3, -1e37)}
    params, good = jax.tree.map(put, (params, jax.tree.map(jnp.zeros_like, params)))
    check(overflowing(), params, good, good | {"w": put(good["w"].at[3, 39].set(1.0))})


def test_what_was_not_finite_does_not_count():
    """A mask of -inf among the parameters, say, whose gradients are 0."""
    kernel = jk.adam(0.5, skip_nonfinite=True)
    params = {"mask": jnp.array([0.0, -jnp.inf]), "w": jnp.ones(3)}
    params, state = kernel.step(params, kernel.init(params), {"mask": jnp.zeros(2), "w": jnp.ones(3)})
    assert state.scalars[SKIPPED] == 0 and state.count == 1 and params["mask"].tolist() == [0, -np.inf]


def test_the_stateful_face():
    w, b = jk.Variable(jnp.full((2, 3), -1e37), name="w"), jk.Variable(jnp.ones(3), name="b")
    optimizer = jk.Adam(3.4e38, beta_1=0.0, beta_2=0.0, epsilon=1e-30, skip_nonfinite=True)
    optimizer.apply([jnp.zeros((2, 3)), jnp.zeros(3)], [w, b])
    before = [np.array(v) for v in (w, b, *optimizer.variables[:-1])]
    optimizer.apply([jnp.ones((2, 3)), jnp.zeros(3)], [w, b])
    optimizer.apply_gradients([(jnp.ones((2, 3)), w), (jnp.zeros(3), b)])
    assert int(optimizer.skipped) == 2 and int(optimizer.iterations) == 1
    assert_same_bits([np.array(v) for v in (w, b, *optimizer.variables[:-1])], before)
    trainable, own = optimizer.stateless_apply(
        [v.value for v in optimizer.variables], [jnp.ones((2, 3)), jnp.zeros(3)], [w.value, b.value]
    )
    assert_same_bits([np.array(x) for x in (*trainable, *own[:-1])], before)
    assert int(own[-1]) == 3


def test_groups_of_the_stateful_face():
    w, b = jk.Variable(jnp.full((2, 3), -1e37), name="w"), jk.Variable(jnp.ones(3), name="bias")
    first = jk.Adam(3.4e38, beta_1=0.0, beta_2=0.0, epsilon=1e-30, skip_nonfinite=True)
    optimizer = jk.MultiOptimizer(jk.OptimizerMap(first, {"bias$": jk.SGD(0.5)}))
    optimizer.apply([jnp.ones((2, 3)), jnp.ones(3)], [w, b])
    assert int(optimizer.skipped) == 1 and b.numpy().tolist() == [1, 1, 1] and (w.numpy() == np.float32(-1e37)).all()
    optimizer.apply([jnp.zeros((2, 3)), jnp.ones(3)], [w, b])
    assert int(optimizer.skipped) == 1 and b.numpy().tolist() == [0.5] * 3


class Dividing(jk.Optimizer):
    """A custom class, p <- p - lr / g. Its hooks are traced once for both computations."""

    traces = 0

    def build(self, variables):
        if not self.built:
            super().build(variables)
            self.seen = self.add_optimizer_variables(variables, "seen")

    def update_step(self, gradient, variable, learning_rate):
        type(self).traces += 1
        seen = self.seen[self._get_variable_index(variable)]
        self.assign_add(seen, gradient)
        self.assign_sub(variable, learning_rate / gradient)


def test_a_custom_class():
    w = jk.Variable(jnp.ones(3), name="w")
    optimizer = Dividing(learning_rate=0.5, skip_nonfinite=True)
    for grads, wanted, skipped in [((1, 1, 1), 0.5, 0), ((1, 0, 1), 0.5, 1), ((2, 2, 2), 0.25, 1)]:
        optimizer.apply([jnp.array(grads, jnp.float32)], [w])
        assert w.numpy().tolist() == [wanted] * 3 and int(optimizer.skipped) == skipped
    assert optimizer.seen[0].numpy().tolist() == [3.0] * 3
    assert Dividing.traces == 1


def test_matrices_are_orthogonalized_once():
    """The products of matrices, most of the step, are not computed twice."""
    kernel, params = jk.muon(0.1, skip_nonfinite=True), {"w": jnp.ones((8, 16))}
    count = lambda k: str(jax.make_jaxpr(k.step)(params, k.init(params), params)).count("dot_general")
    assert count(kernel) == count(jk.muon(0.1)) > 0


@pytest.mark.skipif(none_is_available(), reason="no native loops")
@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_accumulation_steps": 2}, {"state_dtype": "int8"}, {"state_dtype": "int4"}],
    ids=["plain", "accumulate", "int8", "int4"],
)
def test_results_are_not_stored(options):
    """No array but the parameters and slots is in memory, and each of these is replaced in place."""
    kernel, params = jk.adamw(0.1, skip_nonfinite=True, **options), {f"w{i}": jnp.ones((300, 700)) for i in range(2)}
    state = kernel.init(params)
    found = kernel.compiled.step_donating.lower(params, state, params, kernel.hyper()).compile().memory_analysis()
    assert found.temp_size_in_bytes < 300 * 700 * 4
    assert found.alias_size_in_bytes >= sum(x.nbytes for x in jax.tree.leaves((params, state)))


# --- gradients alone


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_alone_can_be_looked_at(engine):
    """A call with bad gradients is skipped, and one with bad results is not: nothing is computed twice."""
    options = {"skip_nonfinite": "gradients", "engine": engine}
    good = good_of(FAULTS["overflow"])
    check(jk.sgd(0.5, **options), tree(1.0), good, spoilt(good, jnp.nan))
    kernel = FAULTS["overflow"].make(**options)
    params, state = kernel.step(tree(1.0), kernel.init(tree(1.0)), spoilt(good, 1e20), donate=False)
    assert state.scalars[SKIPPED] == 0 and not all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(params))
    length = lambda k: len(k.compiled.step.lower(params, k.init(params), good, k.hyper()).as_text())
    assert length(jk.adam(0.5, **options)) < length(jk.adam(0.5, **options | {"skip_nonfinite": True}))


@pytest.mark.parametrize("strict", [True, False])
def test_the_strictest_guard_of_groups_decides(strict):
    other = jk.sgd(0.5, skip_nonfinite="gradients")
    fault = FAULTS["overflow"].make(skip_nonfinite=True if strict else "gradients")
    kernel, good = jk.partition({"matrix": fault}, default=other), good_of(FAULTS["overflow"])
    check(kernel, tree(1.0), good, spoilt(good, jnp.nan))
    _, state = kernel.step(tree(1.0), kernel.init(tree(1.0)), spoilt(good, 1e20), donate=False)
    assert int(state.scalars[SKIPPED]) == strict


def test_gradients_alone_in_the_stateful_face():
    v, w = jk.Variable([1.0], name="v"), jk.Variable([1.0], name="w")
    for optimizer in (
        jk.SGD(1e30, skip_nonfinite="gradients"),
        jk.MultiOptimizer(jk.OptimizerMap(jk.SGD(1e30, skip_nonfinite="gradients"), {"w": jk.SGD(0.5)})),
    ):
        again = jk.deserialize(jk.serialize(optimizer))
        for each in (optimizer, again):
            each.apply([jnp.array([jnp.nan]), jnp.ones(1)], [v, w])
            assert int(each.skipped) == 1 and v.numpy() == w.numpy() == 1.0
    with pytest.raises(ValueError, match=r"`skip_nonfinite` must be one of \[False, True, 'gradients'\]"):
        jk.SGD(skip_nonfinite="results")
