"""Thresholds choose a layout, or how work is divided, and never a result.

A step over many arrays, whatever is around the rule, is one over each array by itself: with more arrays than the
thresholds of the pure and the stateful face, and with every threshold lowered so far that three arrays are many.
"""

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxopt_keras as jk
from jaxopt_keras.engine.native import unavailable
from jaxopt_keras.engine.native.call import AT_ONCE
from jaxopt_keras.engine.slot_packing import FEW
from jaxopt_keras.packing.trees import Packed
from jaxopt_keras.pure import sharding
from tests.laws.cases import RATE, assert_close, assert_same_bits, draw, run, types

SHAPES = {"w0": (2, 3), "w1": (6,), "w2": (5,), "large": (7,), "one": (1,), "scalar": (), "empty": (0, 2)}
LOWERED = {
    "engine.slot_packing.FEW": 1,
    "packing.slots.LARGE": 6,
    "packing.trees._AT_ONCE": 2,
    "engine.native.call.AT_ONCE": 2,
    "engine.native.prologue.LONG": 2,
    "engine.native.unpack.FEW": 1,
    "engine.native.unpack.SMALL": 5,
    "engine.plan.MANY": 1,
}
MANY = {f"w{i}": (2, 3) if i % 2 else (6,) for i in range(FEW + 1)}
STEPS = 4


@pytest.fixture(params=["as they are", "lowered"])
def shapes(request, monkeypatch):
    """More arrays than the thresholds as they are; or few, with the thresholds lowered."""
    if request.param == "as they are":
        return MANY
    for name, value in LOWERED.items():
        monkeypatch.setattr(f"jaxopt_keras.{name}", value)
    return SHAPES


def options(shapes: Any, **given: Any) -> dict[str, Any]:
    """With a seed that nothing draws from, but which keeps what was compiled under other thresholds out."""
    return {"learning_rate": RATE, "seed": len(shapes), **given}


OFFLOADED: dict[str, Any] = {"offload": "pinned_host"}
INNER: dict[str, dict[str, Any]] = {
    "plain": {},
    "flat": {"flat_state": True},
    "never flat": {"flat_state": False},
    "xla": {"engine": "xla"},
}
OPTIONS: dict[str, dict[str, Any]] = INNER | {
    "offload": OFFLOADED,
    "accumulate": {"gradient_accumulation_steps": 2},
    "guard": {"skip_nonfinite": True},
    "average": {"use_ema": True, "weight_decay": 0.1},
}


def groups(adam, sgd):
    return jk.partition({"w1$": sgd}, default=adam)


def mesh():
    return jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


AROUND = {
    "partition": lambda adam, sgd: groups(adam(), sgd()),
    "partition, accumulate": lambda adam, sgd: groups(adam(**OPTIONS["accumulate"]), sgd(**OPTIONS["accumulate"])),
    "partition, guard": lambda adam, sgd: groups(adam(**OPTIONS["guard"]), sgd()),
    "partition, offload": lambda adam, sgd: groups(adam(**OFFLOADED), sgd()),
    "scaled partition": lambda adam, sgd: jk.loss_scaled(groups(adam(), sgd()), 4.0),
    "zero1": lambda adam, sgd: sharding.zero1(adam(), mesh()),
    "zero1 of a partition": lambda adam, sgd: sharding.zero1(groups(adam(), sgd()), mesh()),
} | {
    f"scaled, {name}": lambda adam, sgd, given=given: jk.loss_scaled(adam(**given), 4.0)
    for name, given in OPTIONS.items()
}
PURE = {name: lambda adam, sgd, given=given: adam(**given) for name, given in OPTIONS.items()} | AROUND


def makers(shapes):
    make = lambda f, own: lambda **given: f(**options(shapes, **given), **own)
    return make(jk.adam, {}), make(jk.sgd, {"momentum": 0.5})


def alone(name, shapes):
    """The parameters and slots of one array, trained by a kernel of its own that goes through XLA."""
    kind = next((x for x in ("accumulate", "average") if x in name), "plain")
    return {path: _alone("partition" in name and path == "w1", kind, path, shape) for path, shape in shapes.items()}


@functools.cache
def _alone(is_sgd, kind, path, shape):
    kernel = jk.sgd(RATE, momentum=0.5, engine="xla", **OPTIONS[kind]) if is_sgd else None
    kernel = kernel or jk.adam(RATE, engine="xla", **OPTIONS[kind])
    params, grads = _drawn(path, shape)
    params, state = run(kernel, params, grads)
    return params, state.slots, kernel.averaged(params, state)


def _drawn(path, shape):
    seed = sum(map(ord, path))
    return draw(shape, seed), [draw(shape, seed + 1000 * i) for i in range(1, STEPS + 1)]


def drawn(shapes):
    """The parameters, and the gradients of each step."""
    each = {path: _drawn(path, shape) for path, shape in shapes.items()}
    return {path: p for path, (p, _) in each.items()}, [
        {path: grads[i] for path, (_, grads) in each.items()} for i in range(STEPS)
    ]


def test_some_arrays_are_packed_and_some_are_not(shapes):
    """So that what the thresholds decide is at work below."""
    state, few = jk.adam(**options(shapes), flat_state=True).init(drawn(shapes)[0]), shapes is SHAPES
    packed = [x.size for x in jax.tree.leaves(state.slots.unpack()) if 1 < x.size <= 6]
    assert sum(packed) == state.slots.buffers["float32"].size and len(packed) > LOWERED["packing.trees._AT_ONCE"]
    assert len(jax.tree.leaves(state.slots)) == (1 + 2 * 4 if few else 1)  # one, scalar, empty and large are loose


@pytest.mark.parametrize("name", PURE)
def test_the_pure_face(name, shapes):
    kernel = PURE[name](*makers(shapes))
    params, grads = drawn(shapes)
    if "scaled" in name:
        grads = jax.tree.map(lambda g: 4 * g, grads)
    if "zero1" in name:
        params = jax.device_put(params, NamedSharding(mesh(), PartitionSpec()))
    state = kernel.init(params)
    kind = types(state)
    updates, updated = kernel.update(grads[0], state, params)
    stepped, _ = kernel.step(params, state, grads[0], donate=False)
    assert_close(jax.tree.map(jnp.add, params, updates), stepped, 1)
    params, state = run(kernel, params, grads, state)
    assert types(state) == types(updated) == kind
    slots = state.slots.unpack() if "flat" in name and "never" not in name else state.slots
    averaged = kernel.averaged(params, state)
    for path, (p, own, average) in alone(name, shapes).items():
        assert_close((params[path], averaged[path]), (p, average), STEPS)
        assert_close({n: slots[n][path] for n in own}, own, STEPS)


STATEFUL = {name: (lambda optimizer: optimizer, given) for name, given in OPTIONS.items()} | {
    f"scaled, {name}": (lambda optimizer: jk.LossScaleOptimizer(optimizer, 4.0), given)
    for name, given in OPTIONS.items()
    if name != "average"  # which Keras's has not: its inner optimizer averages
}


def trained(optimizer, shapes, factor=1.0):
    """The variables after all steps; their order changes, which is none of the slots' business."""
    params, grads = drawn(shapes)
    variables = [jk.Variable(x, name=path) for path, x in params.items()]
    for i, g in enumerate(grads):
        pairs = [(factor * g[v.name], v) for v in variables]
        optimizer.apply_gradients(pairs[::-1] if i == 2 else pairs)
    return {v.name: v.value for v in variables}


@pytest.mark.parametrize("name", STATEFUL)
def test_the_stateful_face(name, shapes):
    wrap, given = STATEFUL[name]
    inner = jk.Adam(**options(shapes, **given))
    found = trained(wrap(inner), shapes, 4.0 if "scaled" in name else 1.0)
    expected = alone(name, shapes)
    if name in ("plain", "flat", "never flat", "xla"):
        is_packed = name == "flat" or (name == "plain" and not unavailable())
        assert isinstance(inner._kept.slots, Packed) == is_packed
    assert_close(found, {path: p for path, (p, _, _) in expected.items()}, STEPS)
    if "scaled" not in name:
        assert_close(
            inner.state.slots["momentum"], {path: x["momentum"] for path, (_, x, _) in expected.items()}, STEPS
        )


@pytest.mark.parametrize("given", [{}, OPTIONS["accumulate"]], ids=["step", "accumulate"])
def test_the_stateful_face_with_groups(given, shapes):
    inner = jk.SGD(**options(shapes, **given), momentum=0.5), jk.Adam(**options(shapes, **given))
    optimizer = jk.MultiOptimizer(jk.OptimizerMap(inner[1], {"w1": inner[0]}))
    expected = alone("partition, accumulate" if given else "partition", shapes)
    assert_close(trained(optimizer, shapes), {path: p for path, (p, _, _) in expected.items()}, STEPS)


def test_the_plan_has_every_array(shapes):
    params, _ = drawn(shapes)
    for make in PURE.values():
        plan = make(*makers(shapes)).describe(params)
        assert sorted(path for group in plan.groups for path in group.paths) == sorted(shapes)


@pytest.mark.skipif(bool(unavailable()), reason=unavailable())
def test_more_arrays_than_one_call_takes():
    """Equal to few of them, as the packed ones are, in the sums that XLA adds up and in the last group of loops."""
    few, many = {"w": (3,)}, {f"w{i}": (3,) for i in range(AT_ONCE + 1)}
    kernels = [jk.lamb(RATE, flat_state=x, engine="native", clipnorm=0.5) for x in (False, True)]
    p, g = draw(few, 0)["w"], draw(few, 1)["w"]
    expected, _ = kernels[0].step(p, kernels[0].init(p), g, donate=False)
    for kernel in kernels:
        params = dict.fromkeys(many, p)
        found, _ = kernel.step(params, kernel.init(params), dict.fromkeys(many, g), donate=False)
        for x in found.values():
            np.testing.assert_allclose(x, expected, rtol=1e-6)


# --- programs around programs that once read the options of a stand-in -----------------------------------------------


@pytest.mark.parametrize("size", [2, 300, 65536, 65537])
@pytest.mark.parametrize("wrap", [lambda k: k, jk.loss_scaled], ids=["partition", "loss_scaled"])
def test_a_partition_of_eight_arrays(wrap, size):
    kernel = wrap(jk.partition({"w1$": jk.sgd(0.1)}, default=jk.adamw(1e-3)))
    params = {f"w{i}": jnp.ones(size if i < 2 else 2) for i in range(8)}
    state, scale = kernel.init(params), float(kernel.scale_loss(1.0, kernel.init(params)))
    for _ in range(2):
        params, state = kernel.step(params, state, jax.tree.map(lambda p: jnp.full_like(p, scale), params))
    np.testing.assert_allclose(params["w1"], 0.8, rtol=1e-6)
    for name in params.keys() - {"w1"}:
        np.testing.assert_allclose(params[name], params["w0"][0], rtol=1e-6)
    expected, reference = jnp.ones(1), jk.adamw(1e-3).init(jnp.ones(1))
    for _ in range(2):
        expected, reference = jk.adamw(1e-3).step(expected, reference, jnp.ones(1))
    np.testing.assert_allclose(params["w0"], float(expected[0]), rtol=1e-6)


def test_offload_within_a_loss_scale_of_twenty_arrays():
    kernel = jk.loss_scaled(jk.adamw(RATE, **OFFLOADED), 4.0)
    shapes = {f"w{i}": (5,) for i in range(20)}
    params, grads = drawn(shapes)
    after, state = run(kernel, params, jax.tree.map(lambda g: 4 * g, grads))
    assert {x.sharding.memory_kind for x in jax.tree.leaves(state.slots)} == {"pinned_host"}
    expected, plain = run(jk.adamw(RATE), params, grads)
    assert_close(
        (after, jax.tree.map(np.asarray, state.slots)), (expected, jax.tree.map(np.asarray, plain.slots)), STEPS
    )


@pytest.mark.parametrize("flat_state", [None, False, True])
@pytest.mark.parametrize("engine", ["auto", "xla"])
def test_a_loss_scale_keeps_the_options_of_its_kernel(flat_state, engine):
    """The layout of the slots, and what runs the step, are those of the kernel inside."""
    inner = jk.adam(RATE, flat_state=flat_state, engine=engine)
    kernel, (params, grads) = jk.loss_scaled(inner, 4.0), drawn(MANY)
    after, state = run(kernel, params, jax.tree.map(lambda g: 4 * g, grads))
    expected, plain = run(inner, params, grads)
    assert jax.tree.structure(state.slots) == jax.tree.structure(plain.slots)
    assert_same_bits((after, state.slots), (expected, plain.slots))
    engines = [{group.kind.engine for group in k.describe(params).groups} for k in (kernel, inner)]
    assert engines[0] == engines[1] and (engine == "auto" or engines[0] == {"xla"})
    loops = [runs_loops(k, params) for k in (kernel, inner)]
    assert loops == [engine == "auto" and not unavailable()] * 2


def runs_loops(kernel, params):
    """Whether compiled loops are a part of the step; not whether a buffer is cut by one, whatever the engine."""
    return "jaxopt_keras_loops" in str(jax.make_jaxpr(kernel.step)(params, kernel.init(params), params))


def test_a_pattern_of_a_partition_that_is_misspelt_is_warned_of_once():
    kernel = jk.partition({"v": jk.sgd(0.1)}, default=jk.adam(0.1))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        kernel.init(drawn(MANY)[0])
    assert len(found) == 1 and "'v' matches no parameter" in str(found[0].message)
