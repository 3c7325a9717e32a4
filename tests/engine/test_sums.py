"""Sums over all arrays, for rules that need them: over groups, devices, packed buffers, accumulated gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_keras as jk
from jaxopt_keras import Rule
from jaxopt_keras.language import Rate
from tests.laws.cases import gradients, parameters, run

P = PartitionSpec
SHAPES = {"kernel": (8, 3), "bias": (8,), "scalar": ()}


class Steepest(Rule):
    """p <- p - lr g / |all g|, and the smallest norm so far."""

    learning_rate: Rate = 0.5

    class Scalars(NamedTuple):
        norm: Any
        least: Any

    class Sums(NamedTuple):
        squares: Any

    def scalars(self):
        return self.Scalars(0.0, jnp.inf)

    def share(self, g, p, s, at):
        return self.Sums(jnp.sum(g * g))

    def advance(self, scalars, at):
        norm = jnp.sqrt(at.sums.squares)
        return self.Scalars(norm, jnp.minimum(at.before.least, norm))

    def update(self, g, p, s, at):
        return -at.lr * g / at.scalars.norm, s


def kernel(**options):
    return jk.Kernel(Steepest(), jk.Options(**options))


PARAMS, GRADS = parameters(SHAPES), gradients(3, SHAPES)


def norm(tree):
    return float(np.sqrt(sum(np.sum(np.asarray(x, float) ** 2) for x in jax.tree.leaves(tree))))


def expected(params, grads):
    for g in grads:
        rate = 0.5 / norm(g)
        params = jax.tree.map(lambda p, x, rate=rate: p - rate * x, params, g)
    return params


def check(found, params=PARAMS, grads=GRADS):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found, expected(params, grads))


@pytest.mark.parametrize("engine", ["xla", "native"])
def test_of_every_array(engine):
    params, state = run(kernel(engine=engine), PARAMS, GRADS)
    check(params)
    assert float(state.scalars["norm"]) == pytest.approx(norm(GRADS[-1]), rel=1e-6)
    assert float(state.scalars["least"]) == pytest.approx(min(map(norm, GRADS)), rel=1e-6)
    if engine == "native":
        plan = kernel().describe({"kernel": PARAMS["kernel"], "bias": PARAMS["bias"]})
        assert {group.kind.engine for group in plan.groups} == {"native"}


def test_of_packed_arrays():
    packed = jk.pack(PARAMS)
    params, _ = run(kernel(), packed, [packed.like(g) for g in GRADS])
    check(params.unpack())
    params, _ = run(kernel(flat_state=True), PARAMS, GRADS)
    check(params)


def test_of_accumulated_gradients():
    halves = [jax.tree.map(lambda x, f=f: f * x, g) for g in GRADS for f in (0.5, 1.5)]
    params, _ = run(kernel(gradient_accumulation_steps=2), PARAMS, halves)
    check(params)


def test_over_devices():
    mesh = jax.make_mesh((8,), ("data",))
    specs = {"kernel": P("data"), "bias": P("data"), "scalar": P()}
    put = lambda tree: {n: jax.device_put(x, NamedSharding(mesh, specs[n])) for n, x in tree.items()}
    params, _ = run(kernel(), put(PARAMS), [put(g) for g in GRADS])
    check(params)
    assert params["kernel"].sharding.shard_shape((8, 3)) == (1, 3)


def test_of_gradients_that_a_mapped_axis_sums():
    mesh, one = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,)), kernel(axis_name="data")
    shared = jax.tree.map(lambda x: jnp.stack([x * f for f in (0.1, 0.2, 0.3, 0.4)]), GRADS[0])

    def step(params, state, grads):
        return one.step(params, state, jax.tree.map(lambda x: x[0], grads))[0]

    mapped = jax.shard_map(step, mesh=mesh, in_specs=(P(), P(), P("data")), out_specs=P(), check_vma=False)
    check(jax.jit(mapped)(PARAMS, one.init(PARAMS), shared), grads=GRADS[:1])


def test_of_one_group():
    groups = jk.partition({"bias": kernel()}, default=kernel())
    params, state = run(groups, PARAMS, GRADS)
    for names in (["bias"], ["kernel", "scalar"]):
        part = lambda tree, names=names: {n: tree[n] for n in names}
        check(part(params), part(PARAMS), [part(g) for g in GRADS])
    assert float(state.scalars["bias"]["norm"]) == pytest.approx(norm(GRADS[-1]["bias"]), rel=1e-6)


def test_without_some_gradients_or_all():
    params, state = run(kernel(), PARAMS, [GRADS[0] | {"kernel": None}])
    rest = {n: x for n, x in PARAMS.items() if n != "kernel"}
    check({n: params[n] for n in rest}, rest, [{n: GRADS[0][n] for n in rest}])
    np.testing.assert_array_equal(params["kernel"], PARAMS["kernel"])
    params, after = run(kernel(), params, [dict.fromkeys(PARAMS)], state)
    assert float(after.scalars["norm"]) == float(state.scalars["norm"])


def test_of_several_dtypes(x64):
    dtypes = {"kernel": jnp.bfloat16, "bias": jnp.float32, "scalar": jnp.float64}
    cast = lambda tree: {n: x.astype(dtypes[n]) for n, x in tree.items()}
    params, state = run(kernel(), cast(PARAMS), [cast(GRADS[0])])
    assert {n: p.dtype for n, p in params.items()} == dtypes
    assert state.scalars["norm"].dtype == jnp.float64
    assert float(state.scalars["norm"]) == pytest.approx(norm(cast(GRADS[0])), rel=1e-6)


def test_in_the_stateful_face():
    variables = {n: jk.Variable(x, name=n) for n, x in PARAMS.items()}
    optimizer = jk.Optimizer.from_rule(Steepest())
    for g in GRADS:
        optimizer.apply_gradients((g[n], v) for n, v in variables.items())
    check({n: v.value for n, v in variables.items()})
    assert float(optimizer.state.scalars["norm"]) == pytest.approx(norm(GRADS[-1]), rel=1e-6)


def test_lazy_rows_are_refused():
    with pytest.raises(ValueError, match='`sparse="lazy"` updates single rows'):
        kernel(sparse="lazy")


@pytest.mark.usefixtures("x64", "jax_defaults")
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda: jk.prodigy(variant="optax"), lambda: optax.contrib.prodigy(1.0)),
        (lambda: jk.dadapt_adamw(variant="optax"), lambda: optax.contrib.dadapt_adamw(1.0)),
        (lambda: jk.dog(), lambda: optax.contrib.dog(1.0)),
    ],
    ids=["prodigy", "dadapt_adamw", "dog"],
)
def test_rates_that_grow_as_those_of_optax(ours, theirs):
    """On a bowl of which the solution is far away, so that the estimate of the distance grows."""
    center = {"a": jnp.array([3.0, -2.0]), "b": jnp.array([[0.5], [8.0]])}
    grad = jax.grad(lambda p: sum(jnp.sum((p[n] - c) ** 2) for n, c in center.items()))
    p = q = jax.tree.map(jnp.zeros_like, center)
    one, other = ours(), theirs()
    state, s = one.init(p), other.init(q)
    for _ in range(60):
        p, state = one.step(p, state, grad(p), donate=False)
        u, s = other.update(grad(q), s, q)
        q = optax.apply_updates(q, u)
    assert float(state.scalars["distance"]) > 0.01
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11), p, q)
