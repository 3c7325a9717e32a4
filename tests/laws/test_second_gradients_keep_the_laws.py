"""Rules and modifiers that take a second gradient keep the laws: in both faces, packed, sharded, scanned, saved.

The cases are all rules and modifiers that declare to take the loss function.
"""

import dataclasses
import functools
import json
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_keras as jk
from jaxopt_keras import Kernel, Options, rules
from jaxopt_keras.optimizers import MODIFIERS, OF_LOSSES
from tests.laws.cases import assert_close, parameters, types

STEPS = 3
SHAPES = {"kernel": (8, 4), "bias": (8,), "head": (8, 8)}
INNER = [rules.SGD(0.05, momentum=0.5), rules.Prodigy(1.0, d0=0.01), rules.Muon(0.05)]


def forms(cls: Any) -> list[Any]:
    """A modifier with its switches as they are, and thrown."""
    switches = {f.name: not f.default for f in dataclasses.fields(cls) if isinstance(f.default, bool)}
    return [functools.partial(cls, **switches) for switches in ({}, switches)]


TAKING = [make for cls in MODIFIERS.values() for make in forms(cls) if "function" in make(rules.SGD()).takes]
TAKING = [make for i, make in enumerate(TAKING) if make(rules.SGD()) not in [x(rules.SGD()) for x in TAKING[:i]]]
EVERY = [make(rule) for make in TAKING for rule in INNER]
EVERY += [cls() for cls in OF_LOSSES.values() if "function" in cls().takes]
PARAMS = parameters(SHAPES)


def named(rule: Any) -> str:
    return f"{type(rule).__name__}-{type(rule.inner).__name__}" if hasattr(rule, "inner") else type(rule).__name__


every = pytest.mark.parametrize("rule", EVERY, ids=named)


def loss(params: Any, x: Any = 1.0) -> Any:
    return x * sum(jnp.sum(jnp.sin(3 * p) + (p - 0.5) ** 2) for p in params.values()) / 40


def kernel(rule: Any, **options: Any) -> Kernel:
    return Kernel(rule, Options(**options))


def run(one: Kernel, params: Any, steps: int = STEPS, state: Any = None, f: Any = loss) -> Any:
    state = one.init(params) if state is None else state
    for i in range(steps):
        params, state, _ = one.minimize(f, params, state, 1.0 + 0.25 * (i % 2), donate=False)
    return params, state


def test_there_are_some():
    assert len(EVERY) > 5


@every
def test_step_equals_minimize(rule: Any):
    one, params = kernel(rule), PARAMS
    state = one.init(params)
    for i in range(STEPS):
        x = jnp.float32(1.0 + 0.25 * (i % 2))
        value, grads = jax.value_and_grad(loss)(params, x)
        given = {"value": value, "value_fn": loss, "x": x}
        amounts, moved = one.update(grads, state, params, **given)
        params, state = one.step(params, state, grads, **given, donate=False)
        assert types(moved) == types(state)
    assert_close(params, run(one, PARAMS)[0], STEPS)


@every
def test_native_equals_xla_and_is_a_fixed_point(rule: Any):
    native, (params, state) = kernel(rule), run(kernel(rule, engine="xla"), PARAMS)
    assert_close(run(native, PARAMS)[0], params, STEPS)
    assert types(state) == types(native.init(PARAMS)) and types(params) == types(PARAMS)


@every
def test_packed_equals_apart(rule: Any):
    unpacked = lambda p, x: loss(p.unpack(), x)
    params, _ = run(kernel(rule), jk.pack(PARAMS), f=unpacked)
    assert_close(params.unpack(), run(kernel(rule), PARAMS)[0], STEPS)
    assert_close(run(kernel(rule, flat_state=True), PARAMS)[0], run(kernel(rule), PARAMS)[0], STEPS)


@every
def test_sharded_equals_one_device(rule: Any):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    put = lambda tree: {n: jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))) for n, x in tree.items()}
    assert_close(run(kernel(rule), put(PARAMS))[0], run(kernel(rule), PARAMS)[0], 10 * STEPS)


@every
def test_scanned_equals_looped(rule: Any):
    one = kernel(rule)

    def body(carry: Any, x: Any) -> Any:
        params, state = carry
        f = lambda p: loss(p, x)
        value, grads = jax.value_and_grad(f)(params)
        return one.step(params, state, grads, value=value, value_fn=f), ()

    xs = jnp.array([1.0 + 0.25 * (i % 2) for i in range(STEPS)])
    scanned, _ = jax.lax.scan(body, (PARAMS, one.init(PARAMS)), xs)
    assert_close(scanned[0], run(one, PARAMS)[0], STEPS)


@every
def test_saved_equals_unsaved(rule: Any, tmp_path: Any):
    one = kernel(rule)
    params, state = run(one, PARAMS, 1)
    jk.checkpoint.save(tmp_path / "state.safetensors", state)
    loaded = jk.checkpoint.load(tmp_path / "state.safetensors", one, params)
    assert_close(run(one, params, 2, loaded), run(one, params, 2, state), STEPS)
    assert pickle.loads(pickle.dumps(one)) == one == kernel(rule)


@every
def test_stateful_equals_pure(rule: Any):
    variables = {name: jk.Variable(p, name=name) for name, p in PARAMS.items()}
    optimizer = jk.Optimizer.from_rule(rule)
    again = jk.deserialize(json.loads(json.dumps(jk.serialize(optimizer))))
    assert again._rule == optimizer._rule
    for i in range(STEPS):
        f = lambda i=i: loss({n: v.value for n, v in variables.items()}, 1.0 + 0.25 * (i % 2))
        optimizer.minimize(f, [*variables.values()])
    assert_close({name: v.value for name, v in variables.items()}, run(kernel(rule), PARAMS)[0], STEPS)


@every
def test_one_compilation_and_one_trace_of_each_gradient(rule: Any):
    traces = []

    def traced(params: Any, x: Any) -> Any:
        traces.append(1)
        return loss(params, x)

    one = kernel(rule)
    run(one, PARAMS, f=traced)
    assert len(traces) == 2
    numbers = {name: value / 2 + 0.01 for name, value in one.rule.traced().items() if name != "growth_rate"}
    other = one.replace(**numbers)
    assert other.skeleton == one.skeleton and other != one
    run(other, PARAMS, f=traced)
    assert len(traces) == 2


@every
def test_without_the_function_nothing_changes(rule: Any):
    one = kernel(rule)
    state = one.init(PARAMS)
    with pytest.raises(ValueError, match="needs the loss"):
        one.step(PARAMS, state, PARAMS)
    assert not any(x.is_deleted() for x in jax.tree.leaves((PARAMS, state)))


@every
def test_of_16_bits(rule: Any):
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    found, state = run(kernel(rule), params)
    assert types(found) == types(params) and all(x.dtype != jnp.bfloat16 for x in jax.tree.leaves(state.slots))
    expected, _ = run(kernel(rule), wide)
    for name, p in found.items():
        assert jnp.max(jnp.abs(p.astype(jnp.float32) - expected[name])) < 0.05, name
