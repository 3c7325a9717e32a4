"""L-BFGS: beside a reference with a matrix, beside optax with its line search, and where the search fails."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_keras as jk
from jaxopt_keras import Kernel, Options, rules
from jaxopt_keras.rules import modifiers
from tests.oracles.of_losses import lbfgs

SHAPES = {"a": (2, 3), "b": (), "c": (4,), "none": (0, 2)}


def split(x: Any) -> dict[str, Any]:
    ends = np.cumsum([int(np.prod(shape)) for shape in SHAPES.values()])
    parts = jnp.split(jnp.asarray(x), ends[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(SHAPES.items(), parts, strict=True)}


def joined(p: Any) -> Any:
    return jnp.concatenate([p[name].reshape(-1) for name in SHAPES])


def rosenbrock(p: Any) -> Any:
    x = joined(p)
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def logistic(p: Any) -> Any:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 11)), np.sign(rng.normal(size=50))
    return jnp.mean(jnp.logaddexp(0.0, -jnp.asarray(y) * (jnp.asarray(x) @ joined(p)))) + 0.01 * jnp.sum(joined(p) ** 2)


UNKNOWN: Any = "armijo"
START = np.random.default_rng(1).normal(size=11)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("numbers", [{}, {"memory_size": 3}, {"memory_size": 1}, {"scale_init_precond": False}])
def test_beside_the_reference(numbers: Any):
    kernel = jk.lbfgs(0.05, linesearch="none", **numbers)
    gradient = lambda x: np.asarray(joined(jax.grad(logistic)(split(x))))
    expected = lbfgs.run(START, gradient, 12, 0.05, **numbers)
    params = split(START)
    state = kernel.init(params)
    for i in range(12):
        params, state = kernel.step(params, state, jax.grad(logistic)(params), donate=False)
        travelled = np.max(np.abs(expected[i + 1] - START))
        np.testing.assert_allclose(joined(params), expected[i + 1], rtol=0, atol=1e-12 * travelled)


@pytest.mark.usefixtures("x64", "jax_defaults")
@pytest.mark.parametrize("loss", [rosenbrock, logistic], ids=["rosenbrock", "logistic"])
@pytest.mark.parametrize("memory", [10, 2])
def test_beside_optax(loss: Any, memory: int):
    """Rates, evaluations and points; later a search may decide otherwise for the sake of a last digit."""
    ours, theirs = jk.lbfgs(memory_size=memory), optax.lbfgs(memory_size=memory)
    traces = []

    def counted(p: Any) -> Any:
        traces.append(1)
        return loss(p)

    p = q = split(START)
    state, other = ours.init(p), theirs.init(q)
    given = optax.value_and_grad_from_state(loss)
    update = jax.jit(lambda g, t, q, v: theirs.update(g, t, q, value=v, grad=g, value_fn=loss))
    for i in range(25):
        value, g = given(p, state=state)
        p, state = ours.step(p, state, g, value=value, grad=g, value_fn=counted, donate=False)
        value, g = given(q, state=other)
        amounts, other = update(g, other, q, value)
        q = optax.apply_updates(q, amounts)
        tolerance = 1e-9 * 10 ** (i / 8)
        np.testing.assert_allclose(joined(p), joined(q), rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(state.scalars["rate"], optax.tree.get(other, "learning_rate"), rtol=10 * tolerance)
        assert int(state.scalars["evaluations"]) == int(optax.tree.get(other, "num_linesearch_steps"))
        np.testing.assert_allclose(state.scalars["value"], loss(p), rtol=1e-12)
        np.testing.assert_allclose(joined(state.slots["grad"]), joined(jax.grad(loss)(p)), rtol=1e-9, atol=1e-12)
    assert len(traces) == 1


def test_it_converges_in_every_face():
    loss = lambda p: rosenbrock(split(p))
    kernel, params = jk.lbfgs(), jnp.asarray(START, jnp.float32)
    state = kernel.init(params)
    for _ in range(60):
        params, state, _ = kernel.minimize(loss, params, state)
    assert float(loss(params)) < 1e-6 or abs(float(loss(params)) - 3.9) < 0.2  # its other minimum
    v = jk.Variable(START.astype(np.float32))
    scale, calls = jk.Variable(1.0, trainable=False), []

    def f() -> Any:
        calls.append(1)
        return scale.value * loss(v.value)

    optimizer = jk.LBFGS()
    for i in range(60):
        scale.assign(1.0 if i < 59 else 2.0)  # an argument of the program
        optimizer.minimize(f, [v])
    np.testing.assert_allclose(loss(v.value), loss(params), rtol=0.1, atol=1e-4)
    assert len(calls) <= 4
    scanned = jax.jit(
        lambda p: jax.lax.scan(lambda c, _: (kernel.minimize(loss, *c)[:2], ()), (p, kernel.init(p)), length=60)[0][0]
    )
    np.testing.assert_allclose(loss(scanned(jnp.asarray(START, jnp.float32))), loss(params), rtol=0.1, atol=1e-4)


@pytest.mark.usefixtures("x64")
def test_a_pair_of_negative_curvature_is_left_out():
    kernel, params = jk.lbfgs(1.0, linesearch="none"), {"w": jnp.array([1.0, 2.0])}
    state = kernel.init(params)
    params, state = kernel.step(params, state, {"w": jnp.array([0.5, 0.0])}, donate=False)
    before = params
    params, state = kernel.step(params, state, {"w": jnp.array([0.75, 0.25])}, donate=False)  # grows along the step
    np.testing.assert_allclose(params["w"] - before["w"], [-0.75, -0.25], rtol=1e-12)


@pytest.mark.parametrize("loss", [lambda p: jnp.nan * jnp.sum(p), lambda p: jnp.where(p[0] == 1, jnp.sum(p), jnp.nan)])
def test_a_loss_that_is_not_finite_moves_nothing(loss: Any):
    kernel, params = jk.lbfgs(), jnp.array([1.0, -2.0])
    found, state, value = kernel.minimize(loss, params, kernel.init(params), donate=False)
    assert int(state.count) == 1 and float(state.scalars["evaluations"]) == 20
    assert found.tolist() == params.tolist() or bool(jnp.isnan(value))


def test_a_search_that_fails_takes_the_best_rate():
    """One evaluation: the slope is too steep still, and the decrease is enough."""
    kernel, params = jk.lbfgs(0.01, max_linesearch_steps=1), jnp.array([3.0, 4.0])
    loss = lambda p: jnp.sum(p**2) / 2
    found, state, _ = kernel.minimize(loss, params, kernel.init(params), donate=False)
    assert float(loss(found)) < float(loss(params)) and float(state.scalars["rate"]) == 1.0
    rises = lambda p: jnp.sum((p - 3.0) ** 4) + 100 * jnp.sum(p)
    two = jk.lbfgs(50.0, max_linesearch_steps=6, approx_dec_rtol=None, curv_rtol=1e-3)
    found, state, value = two.minimize(rises, params, two.init(params), donate=False)
    assert float(rises(found)) < float(value) and float(state.scalars["value"]) == float(rises(found))
    kink = lambda p: jnp.where(p < 1.5, -p, 100 * (p - 1.5) - 1.5)
    short = jk.lbfgs(max_linesearch_steps=2)  # 1 falls, and is steep still; 2 rises
    found, _, _ = short.minimize(kink, jnp.zeros(()), short.init(jnp.zeros(())), donate=False)
    assert float(found) == 1.0
    least = jk.lbfgs(max_learning_rate=0.5)
    assert float(least.minimize(loss, params, least.init(params))[1].scalars["rate"]) == 0.5


def test_the_last_rate_may_be_the_first_one():
    kernel, params = jk.lbfgs(1e-3, initial_guess_strategy="keep"), jnp.array([3.0, 4.0])
    loss, state = (lambda p: jnp.sum(p**2) / 2), None
    state = kernel.init(params)
    params, state, _ = kernel.minimize(loss, params, state)
    assert float(state.scalars["rate"]) > 2 and float(state.scalars["evaluations"]) > 2


def test_a_step_reuses_every_slot():
    kernel, params = jk.lbfgs(memory_size=2), {"w": jnp.ones((8, 2))}
    state = kernel.init(params)
    kernel.minimize(lambda p: jnp.sum((p["w"] - 2) ** 4), params, state)
    assert all(x.is_deleted() for x in jax.tree.leaves((params, state.slots)))


def test_sharded_memory():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    put = lambda p: jax.device_put(p, NamedSharding(mesh, PartitionSpec("data")))
    loss = lambda p: jnp.sum((p["w"] - 1) ** 4)
    params = {"w": jnp.linspace(-1.0, 3.0, 16).reshape(8, 2)}
    kernel = jk.lbfgs(memory_size=3)
    ends = []
    for place in (lambda p: p, put):
        p = jax.tree.map(place, params)
        state = kernel.init(p)
        for _ in range(5):
            p, state, _ = kernel.minimize(loss, p, state, donate=False)
        ends.append(p["w"])
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-4)
    assert state.slots["steps"]["w"].sharding.shard_shape((3, 8, 2)) == (3, 2, 2)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: jk.lbfgs(weight_decay=0.1), ValueError, "searches along the loss as it is"),
        (lambda: jk.lbfgs(clipnorm=1.0), ValueError, "searches along the loss as it is"),
        (lambda: jk.lbfgs(gradient_accumulation_steps=2), ValueError, "searches along the loss as it is"),
        (lambda: jk.lbfgs(memory_size=0), ValueError, "`memory_size` must be in"),
        (lambda: jk.lbfgs(linesearch=UNKNOWN), ValueError, "`linesearch` must be"),
        (lambda: Kernel(modifiers.Lookahead(rules.LBFGS())), ValueError, "searches for their length"),
        (lambda: Kernel(modifiers.SAM(rules.LBFGS())), ValueError, "searches for their length"),
        (lambda: jk.lbfgs(own_counts=True), ValueError, "`own_counts` needs a rule without numbers"),
    ],
)
def test_what_is_refused(make: Any, error: Any, text: str):
    with pytest.raises(error, match=text):
        make()


def test_without_a_search_it_needs_no_function():
    kernel = Kernel(rules.LBFGS(0.1, linesearch="none"), Options(clipnorm=1.0))
    params = {"w": jnp.ones(2), "frozen": jnp.ones(2)}
    new, state = kernel.step(params, kernel.init(params), {"w": jnp.ones(2), "frozen": None}, donate=False)
    assert "grad" not in state.slots or isinstance(state.slots["grad"]["w"], optax.MaskedNode)
    assert new["frozen"].tolist() == [1, 1] and new["w"][0] < 1
    searching = jk.lbfgs()
    grads = {"w": 2 * params["w"], "frozen": None}
    given = {"value": 2.0, "value_fn": lambda p: jnp.sum(p["w"] ** 2)}
    new, _ = searching.step(params, searching.init(params), grads, **given, donate=False)
    assert new["frozen"].tolist() == [1, 1] and float(jnp.sum(new["w"] ** 2)) < 2
