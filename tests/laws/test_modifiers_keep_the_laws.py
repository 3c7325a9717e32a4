"""Modifiers keep the laws: around any rule, and around each other, they are rules like all others.

So what the engine does around a rule (packing, sharding, accumulation, storage, both faces) is right for every
combination of them, also of those that were never tried. Each test draws some.
"""

import copy
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_keras as jk
from jaxopt_keras import Kernel, Options, rules
from jaxopt_keras.language.modifier import with_average
from jaxopt_keras.rules import modifiers
from tests.laws.cases import assert_close, gradients, parameters, run, types

STEPS = 3
SHAPES = {"kernel": (8, 4), "bias": (8,), "head": (8, 8)}
ELEMENT = [  # those that act on each element alone, so that arrays can be packed
    modifiers.CautiousDecay,
    modifiers.Lookahead,
    modifiers.ScheduleFree,
    lambda inner: modifiers.Mars(inner, clip=False),
]
OTHERS = [
    modifiers.Cautious,
    modifiers.Mars,
    modifiers.Centralized,
    modifiers.AdaptiveClip,
    modifiers.Hyperball,
    modifiers.OrthoGrad,
    lambda inner: modifiers.ScaledRate(inner, pattern="head", factor=0.5),
]
AVERAGES = [modifiers.Lookahead, modifiers.ScheduleFree]  # at most one of them
INSIDE = [modifiers.CautiousDecay, modifiers.Cautious, modifiers.Hyperball]  # of an average: they change steps
BASES = [
    rules.SGD(0.05, momentum=0.5),
    rules.Adam(0.05),
    rules.Nadam(0.05),  # with a number that is kept once
    rules.Prodigy(1.0, d0=0.01),  # with sums over all arrays
    rules.Muon(0.05),  # with another rule for some arrays
]


def drawn(seed, layers):
    """A rule inside of two or three modifiers. A cautious decay is the innermost: others may apply the decay."""
    rng = np.random.default_rng(seed)
    rule, chosen = BASES[seed % len(BASES)], rng.permutation(len(layers))[: rng.integers(2, 4)]
    for make in sorted((layers[i] for i in chosen), key=[*INSIDE, *layers].index):
        refused = rule.decoupled(1.0) is None if make is modifiers.CautiousDecay else with_average(rule)
        if not refused or make not in INSIDE + AVERAGES:
            rule = make(rule)
    return rule


def kernel(seed, layers=None, **options):
    return Kernel(drawn(seed, layers or ELEMENT + OTHERS), Options(**{"weight_decay": 0.1} | options))


PARAMS, GRADS = parameters(SHAPES), gradients(STEPS, SHAPES)
seeds = pytest.mark.parametrize("seed", range(5))


@pytest.mark.parametrize("seed", [0, 1, 2, 8])
def test_packed_equals_apart(seed):
    one = kernel(seed, ELEMENT)
    assert one.core.elementwise
    packed, _ = run(one, jk.pack(PARAMS), [jk.pack(PARAMS).like(g) for g in GRADS])
    assert_close(packed.unpack(), run(one, PARAMS, GRADS)[0], STEPS)
    assert_close(run(kernel(seed, ELEMENT, flat_state=True), PARAMS, GRADS)[0], run(one, PARAMS, GRADS)[0], STEPS)


@seeds
def test_native_equals_xla_and_is_a_fixed_point(seed):
    native, (params, state) = kernel(seed), run(kernel(seed, engine="xla"), PARAMS, GRADS)
    assert_close(run(native, PARAMS, GRADS), (params, state), STEPS)
    assert types(state) == types(native.init(PARAMS)) and types(params) == types(PARAMS)


@seeds
def test_sharded_equals_one_device(seed):
    one, mesh = kernel(seed), jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    put = lambda tree: {n: jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))) for n, x in tree.items()}
    params, state = run(one, put(PARAMS), [put(g) for g in GRADS])
    assert_close(params, run(one, PARAMS, GRADS)[0], 10 * STEPS)  # sums in another order
    assert all(x.sharding.shard_shape(x.shape)[0] == 1 for tree in state.slots.values() for x in jax.tree.leaves(tree))


@seeds
def test_accumulated_equals_mean(seed):
    halves = [jax.tree.map(lambda x, f=f: f * x, g) for g in GRADS for f in (0.5, 1.5)]
    params, _ = run(kernel(seed, gradient_accumulation_steps=2), PARAMS, halves)
    assert_close(params, run(kernel(seed), PARAMS, GRADS)[0], STEPS)


@seeds
def test_saved_equals_unsaved(seed, tmp_path):
    one = kernel(seed)
    params, state = run(one, PARAMS, GRADS[:1])
    jk.checkpoint.save(tmp_path / "state.safetensors", state)
    loaded = jk.checkpoint.load(tmp_path / "state.safetensors", one, params)
    assert_close(run(one, params, GRADS[1:], loaded), run(one, params, GRADS[1:], state), STEPS)
    assert pickle.loads(pickle.dumps(one)) == one == kernel(seed)


@seeds
def test_stateful_equals_pure(seed):
    variables = {name: jk.Variable(p, name=name) for name, p in PARAMS.items()}
    optimizer = jk.Optimizer.from_rule(drawn(seed, ELEMENT + OTHERS), weight_decay=0.1)
    again = jk.deserialize(json.loads(json.dumps(jk.serialize(optimizer))))
    assert again._rule == optimizer._rule
    for i, g in enumerate(GRADS):
        optimizer.apply_gradients((g[name], v) for name, v in variables.items())
        optimizer = copy.copy(optimizer) if i == 0 else optimizer
    assert_close({name: v.value for name, v in variables.items()}, run(kernel(seed), PARAMS, GRADS)[0], STEPS)


@pytest.mark.parametrize("seed", [1, 5])
def test_int8_follows_float32(seed):
    shapes = {"kernel": (64, 96), "head": (64, 64)}
    params, grads = parameters(shapes), [jax.tree.map(lambda g: g + 0.5, x) for x in gradients(20, shapes)]
    wide, _ = run(kernel(seed), params, grads)
    narrow, state = run(kernel(seed, state_dtype="int8"), params, grads)
    assert sum(hasattr(x, "codes") for x in jax.tree.leaves(state.slots, is_leaf=lambda x: hasattr(x, "codes"))) > 0
    way = jnp.linalg.norm(wide["kernel"] - params["kernel"])
    assert jnp.linalg.norm(narrow["kernel"] - wide["kernel"]) < 0.1 * way


@seeds
def test_one_compilation(seed):
    one = kernel(seed)
    numbers = {name: value / 2 + 0.01 for name, value in one.rule.traced().items() if name != "growth_rate"}
    other = one.replace(**numbers)
    assert other.skeleton == one.skeleton and other != one
    run(one, PARAMS, GRADS[:1])
    before = one.compiled.step._cache_size()
    for each in (other, one.replace(weight_decay=0.2)):
        run(each, PARAMS, GRADS[:1])
    assert one.compiled.step._cache_size() == before


def test_parts_of_a_partition():
    """Each group has its own: those of one group see nothing of the others."""
    groups = jk.partition({"head": kernel(3)}, default=kernel(6))
    params, _ = run(groups, PARAMS, GRADS)
    for seed, names in ((3, ["head"]), (6, ["kernel", "bias"])):
        part = lambda tree, names=names: {name: tree[name] for name in names}
        assert_close(part(params), run(kernel(seed), part(PARAMS), [part(g) for g in GRADS])[0], STEPS)
