"""Slots in one buffer: nothing but the layout changes, whatever is around the rule, and the loops find them there."""

import copy
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras import checkpoint
from jaxopt_keras.engine.native import native, unavailable
from jaxopt_keras.engine.slot_packing import FEW
from jaxopt_keras.engine.state import State
from jaxopt_keras.packing import slots as flat
from jaxopt_keras.packing.trees import Packed, pack_buffer, unpack_buffer, unpacked
from tests.laws.cases import AWKWARD, PLAIN, assert_close, assert_same_bits, draw, gradients, types

AROUND = {
    "clip, decay, average": {"global_clipnorm": 0.5, "use_ema": True, "weight_decay": 0.1},
    "accumulation within guards": {"gradient_accumulation_steps": 2, "skip_nonfinite": True, "skip_spikes": 3.0},
    "codes": {"state_dtype": "int8"},
    "through XLA": {"engine": "xla"},
    "clip of each": {"clipnorm": 0.3, "exclude_from_weight_decay": "bias", "weight_decay": 0.1},
}
SHAPES = AWKWARD | {"blocks": (64, 64)}


def check(kernel, flat_kernel):
    params = flat_params = draw(SHAPES, 0)
    state, flat_state = kernel.init(params), flat_kernel.init(params)
    assert len(jax.tree.leaves(flat_state)) < len(jax.tree.leaves(state))
    kind = types(flat_state)
    for i, g in enumerate(gradients(4, SHAPES)):
        g["embedding"] = None if i == 2 else g["embedding"]
        g["half"] = jnp.full(5, jnp.nan, jnp.bfloat16) if i == 1 and kernel.options.skip_nonfinite else g["half"]
        updates, after = flat_kernel.update(g, flat_state, flat_params)
        params, state = kernel.step(params, state, g, donate=False)
        before = flat_params
        flat_params, flat_state = flat_kernel.step(flat_params, flat_state, g, donate=False)
        assert types(flat_state) == types(after) == kind
        assert_close(flat_params, params, i + 1)
        assert_close(flat_state._replace(slots=flat_state.slots.unpack()), state, i + 1)
        added = jax.tree.map(plus, before, updates, is_leaf=lambda x: x is None)
        assert_close(added, flat_params, 2)
    assert_close(flat_kernel.averaged(flat_params, flat_state), kernel.averaged(params, state), 4)


def plus(p, u):
    return p if u is None else (p.astype(u.dtype) + u).astype(p.dtype)


# Of each grain, and with numbers that are kept once.
@pytest.mark.parametrize("name", ["Adam", "Lamb", "Adafactor", "Nadam"])
def test_flat_equals_tree(name):
    case = next(case for case in PLAIN if str(case) == f"{name}-keras-plain")
    check(case.kernel(), case.kernel(flat_state=True))


@pytest.mark.parametrize("options", AROUND.values(), ids=AROUND)
def test_whatever_is_around_the_rule(options):
    check(jk.adamw(0.1, **options), jk.adamw(0.1, **options, flat_state=True))


def test_only_small_arrays_are_joined():
    tree = {"a": jnp.ones((3, 2)), "one": jnp.ones(1), "none": jnp.ones((0, 2)), "large": jnp.ones(flat.LARGE + 1)}
    joined = flat.pack_slots(tree | {"half": jnp.ones(4, jnp.bfloat16), "b": jnp.zeros(2)}, ("b",))
    assert {name: x.size for name, x in joined.buffers.items()} == {"float32": 6, "bfloat16": 4}
    assert_same_bits(joined.unpack()["large"], tree["large"])
    assert flat.pack_slots({}).unpack() == {}


@pytest.mark.skipif(bool(unavailable()), reason=unavailable())
@pytest.mark.parametrize("around", [{}, AROUND["accumulation within guards"]], ids=["step", "within cond"])
@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_loops_work_within_the_buffer(name, around, monkeypatch):
    """No array is copied, cut out or put together: not by one call for all, not by several, and in no branch."""
    monkeypatch.setattr("jaxopt_keras.engine.native.call.AT_ONCE", 4)
    kernel = jk.optimizers.FUNCTIONS[name](0.1, **around, flat_state=True)
    params = {f"w{i}": jnp.ones((5, 7) if i % 2 else 35) for i in range(9)}
    state = kernel.init(params)
    args = params, state, params, kernel.hyper()
    text = kernel.compiled.step_donating.lower(*args).compile().as_text()
    buffer = sum(x.size for x in jax.tree.leaves(state.slots.buffers))
    assert not re.search(rf"= \w+\[({buffer}|35|5,7)\]\S* (copy|slice|concatenate|dynamic-update-slice|fusion)\(", text)
    assert len(re.findall(r"(?:may|must)-alias\)", text.splitlines()[0])) == len(jax.tree.leaves(args[:2]))


@pytest.mark.skipif(bool(unavailable()), reason=unavailable())
def test_packed_parameters_are_not_cut_out_either():
    packed = jk.pack({"w": jnp.ones((5, 7)), "b": jnp.ones(35)})
    kernel = jk.lamb(0.1, clipnorm=1.0, flat_state=True)
    state = kernel.init(packed)
    args = packed, state, packed, kernel.hyper()
    text = kernel.compiled.step_donating.lower(*args).compile().as_text()
    assert not re.search(r"= \w+\[(140|70|35|5,7)\]\S* (copy|slice|concatenate|dynamic-update-slice|fusion)\(", text)


@pytest.mark.skipif(bool(unavailable()), reason=unavailable())
def test_what_is_needed_elsewhere_too_is_there():
    def doubled(buffer):
        parts = [2 * x for x in unpack_buffer(buffer, (3, 4, 1))]
        return pack_buffer(parts), parts[1]

    buffer = jnp.arange(8.0)
    for function in (doubled, native(doubled, strict=True), jax.jit(native(doubled), donate_argnums=0)):
        whole, part = function(jnp.copy(buffer))
        np.testing.assert_array_equal(whole, 2 * buffer)
        np.testing.assert_array_equal(part, 2 * buffer[3:7])


def test_checkpoints_are_those_of_the_tree(tmp_path):
    params, grads = draw(SHAPES, 0), gradients(2, SHAPES)
    kernel, other = jk.adam(0.1), jk.adam(0.1, flat_state=True)
    _, state = kernel.step(params, kernel.init(params), grads[0], donate=False)
    moved = checkpoint.from_dict(other, params, checkpoint.to_dict(state))
    assert_same_bits(moved.slots.unpack(), state.slots)
    checkpoint.save(tmp_path / "run.safetensors", moved)
    assert_same_bits(checkpoint.load(tmp_path / "run.safetensors", kernel, params), state)


def test_the_plan_is_that_of_the_tree():
    params = draw(SHAPES, 0)
    plan, other = (jk.adam(0.1, state_dtype="int8", flat_state=x).describe(params) for x in (True, None))
    assert str(plan) == str(other) and plan.bytes == other.bytes


def test_what_needs_the_tree_refuses():
    kernel = jk.adam(flat_state=True)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    for call in (
        lambda: jk.partition({"w": kernel}),
        lambda: jk.sharding.zero1(kernel, mesh),
        lambda: jk.sharding.specs(kernel, {"w": jnp.ones(8)}, {"w": jax.sharding.PartitionSpec()}),
        lambda: jk.adam(flat_state=True, offload="pinned_host"),
    ):
        with pytest.raises(ValueError, match="flat_state"):
            call()


# --- in the pure face, where it is asked for --------------------------------------------------------------------------

MANY = {f"w{i}": (2, 3) for i in range(FEW)}


def test_a_pure_state_is_packed_only_if_asked():
    kernels = {asked: jk.adam(0.1, use_ema=True, flat_state=asked) for asked in (None, False, True)}
    grads, runs = gradients(4, MANY), {}
    for asked, kernel in kernels.items():
        params, state = draw(MANY, 0), kernel.init(draw(MANY, 0))
        kind, structure = types(state), jax.tree.structure(state)
        for i, g in enumerate(grads):
            _, after = kernel.update(g, state, params)
            params, state = kernel.step(params, state, g, donate=i % 2 == 0)
            assert types(state) == types(after) == kind and jax.tree.structure(state) == structure
            assert isinstance(state.slots, Packed) == (asked is True)
        averaged = kernel.averaged(params, state)
        runs[asked] = params, state._replace(slots=unpacked(state.slots)), averaged
    assert_same_bits(runs[None], runs[False])
    assert_same_bits(runs[True], runs[False])


def test_a_packed_state_is_a_state():
    kernel, params = jk.adam(0.1, flat_state=True), draw(MANY, 0)
    g = gradients(1, MANY)[0]
    fresh = lambda: kernel.step(params, kernel.init(params), g, donate=False)[1]
    assert fresh().slots.buffers["float32"].size == 2 * 6 * FEW
    for other in (copy.copy(fresh()), copy.deepcopy(fresh()), pickle.loads(pickle.dumps(fresh())), State(*fresh())):
        assert_same_bits(other, fresh())
    step = lambda params, state: kernel.step(params, state, g)
    expected = step(*jax.tree.map(jnp.copy, (params, fresh())))
    assert_same_bits(jax.jit(step)(params, fresh()), expected)
    known = fresh()
    assert_same_bits(jax.jit(lambda params: step(params, known))(params), expected)
    looped = jax.lax.scan(lambda carry, _: (step(*carry), None), (params, fresh()), length=1)[0]
    assert_same_bits(looped, expected)


@pytest.mark.skipif(bool(unavailable()), reason=unavailable())
def test_arrays_on_several_devices_do_not_rest():
    everywhere = jax.sharding.NamedSharding(jax.make_mesh((2,), ("d",)), jax.sharding.PartitionSpec())
    optimizers = [jk.Adam(0.1) for _ in range(2)]
    for optimizer, put in zip(optimizers, (lambda x: x, lambda x: jax.device_put(x, everywhere)), strict=True):
        vs = [jk.Variable(put(x), name=name) for name, x in draw(MANY, 0).items()]
        for g in gradients(2, MANY):
            optimizer.apply([put(g[v.name]) for v in vs], vs)
    here, spread = optimizers
    assert is_packed(here) and not is_packed(spread)
    assert jax.tree.leaves(spread._kept.slots)[0].sharding.num_devices == 2
    assert_close(jax.tree.map(np.asarray, spread.state), jax.tree.map(np.asarray, here.state), 2)


# --- the stateful face ------------------------------------------------------------------------------------------------


def variables(count=FEW):
    return [jk.Variable(x, name=f"w{i}") for i, x in enumerate(jax.tree.leaves(draw([(2, 3)] * count, 0)))]


def both(**options):
    """Two optimizers that differ in the layout of their slots alone, and variables for each."""
    return [(jk.Adam(0.1, **options, flat_state=x), variables()) for x in (None, False)]


def is_packed(optimizer):
    return isinstance(optimizer._kept.slots, Packed)


def assert_same(pairs):
    (a, vs), (b, ws) = pairs
    for x, y in zip([*a.get_weights(), *vs], [*b.get_weights(), *ws], strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.skipif(bool(unavailable()), reason=unavailable())
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_slots_rest_in_a_buffer_until_somebody_looks():
    pairs = both()
    for some in (range(FEW), range(FEW), range(3), range(FEW)):
        for optimizer, vs in pairs:
            optimizer.apply_gradients([(jnp.full((2, 3), i + 1.0), vs[i]) for i in some])
        assert is_packed(pairs[0][0])
        assert int(pairs[0][0].iterations) == int(pairs[1][0].iterations)  # which unpacks nothing
        assert is_packed(pairs[0][0])
    (resting, vs), (plain, ws) = pairs
    assert resting._kept.slots.buffers["float32"].size == 2 * 6 * FEW
    assert not is_packed(plain)
    for optimizer, own in pairs:  # what is written after a look is seen by the next step
        slot = optimizer.get_slot(own[0], "momentum")
        optimizer._state.slots["velocity"]["w1"] = jnp.full((2, 3), 3.0)
        optimizer.apply_gradients([(jnp.ones((2, 3)), v) for v in own])
        slot.assign(jnp.full((2, 3), 7.0))
        optimizer.apply_gradients([(jnp.ones((2, 3)), v) for v in own])
    assert_same(pairs)
    twins = [(copy.deepcopy(optimizer), own) for optimizer, own in pairs]
    for optimizer, own in pairs:
        optimizer.state = optimizer.state
        optimizer.learning_rate = 0.5
        optimizer.apply_gradients([(jnp.ones((2, 3)), v) for v in [*own, jk.Variable(jnp.ones((2, 3)), name="late")]])
    assert_same(pairs)
    assert int(twins[0][0].iterations) == int(pairs[0][0].iterations) - 1
    assert_same([(x, []) for x, _ in twins])


def test_where_it_would_be_slower_they_do_not_rest():
    for options in ({"engine": "xla"}, {"sparse": "lazy"}, {"flat_state": False}):
        optimizer, vs = jk.Adam(0.1, **options), variables()
        optimizer.apply_gradients([(v.value, v) for v in vs])
        assert not is_packed(optimizer)
    optimizer, vs = jk.Adam(0.1, engine="xla", flat_state=True), variables(2)
    optimizer.apply_gradients([(v.value, v) for v in vs])
    assert is_packed(optimizer)
