"""Slots in several buffers, as on a GPU: arrays of any size, aligned, and no more than one buffer twice in memory."""

import pickle
import re

import jax
import jax.numpy as jnp
import pytest

import jaxopt_keras as jk
from jaxopt_keras.engine import slot_packing
from jaxopt_keras.engine.native import backends, native, unavailable
from jaxopt_keras.engine.slot_packing import FEW, form_of
from jaxopt_keras.language.places import Places
from jaxopt_keras.packing import slots
from jaxopt_keras.packing.trees import Packed, unpacked
from tests.engine.native.cuda_grid import Grid
from tests.engine.native.test_cuda_grid import InCuda
from tests.laws.cases import assert_same_bits, draw

SHAPES = {"a": (9, 7), "b": (31,), "one": (1,), "none": (0, 2), "large": (500,), "w": (16, 8), "x": (35,), "y": (5, 7)}
loops = pytest.mark.skipif(bool(unavailable()), reason=unavailable())


@pytest.fixture
def whole(monkeypatch):
    """The form for GPUs, in which this CPU packs, with buffers of 1 KiB."""
    monkeypatch.setattr(slots, "MOST", 1024)
    monkeypatch.setattr(slot_packing, "small", slots.whole)
    return slots.whole()


def test_buffers_have_a_limited_size_and_aligned_arrays(whole):
    tree = {"m": draw(SHAPES, 0), "half": draw(SHAPES, 1, jnp.bfloat16), "code": {"w": jnp.ones((9, 100), jnp.int8)}}
    tree["code"]["wave"] = jnp.full(3, 1j)
    packed = slots.pack_slots(tree, ("loose",), whole)
    assert_same_bits(packed.unpack(), tree)
    assert {*packed.buffers} == {"float32", "float32_1", "bfloat16", "bfloat16_1", "bfloat16_2", "int8", "complex64"}
    assert all(x.nbytes <= 1024 for x in packed.buffers.values())
    inside = [part for part in packed.parts if part.buffer]
    assert all(part.offset * packed.buffers[part.buffer].itemsize % slots.UNIT == 0 for part in inside)
    loose = {part.path for part in packed.parts if not part.buffer}
    assert loose == {"m/one", "m/none", "m/large", "half/one", "half/none"}
    for other in (pickle.loads(pickle.dumps(packed)), packed.like(tree)):
        assert_same_bits(other, packed)
    changed = packed.buffers["float32"].at[63].set(7.0)  # in a gap
    odd = Packed(packed.buffers | {"float32": changed}, packed.loose, packed.arrangement)
    assert_same_bits(odd.like(tree), odd)


def test_one_buffer_after_the_other(whole, monkeypatch):
    tree = {"m": draw(SHAPES, 0), "v": draw(SHAPES, 1), "sum": draw(SHAPES, 2)}
    packed, size = slots.pack_slots(tree, ("sum",), whole), jk.nbytes(tree)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    steps = [*slots.packing(tree, ("sum",), whole)]
    assert steps[-1].arrangement is packed.arrangement and len(steps) == len(packed.buffers) > 2
    assert_same_bits(steps[-1], packed)
    for each in (*steps, *(back := [*slots.unpacking(packed)])):
        assert size <= jk.nbytes(each) < size + len(packed.parts) * slots.UNIT  # no array is there twice
        assert_same_bits(each.unpack(), tree)
    assert not back[-1].buffers


OPTIONS = {
    "plain": {}, "codes": {"state_dtype": "int8", "rounding": "stochastic"}, "average": {"use_ema": True},
    "master": {"master_weights": "bf16+8"}, "guard": {"skip_nonfinite": True},
    "sum": {"gradient_accumulation_steps": 2, "global_clipnorm": 0.5}, "groups": {"exclude_from_weight_decay": "w"},
}  # fmt: skip


@loops
@pytest.mark.parametrize("on_grid", [False, True], ids=["C", "grid"])
@pytest.mark.parametrize(
    "name,options", [("adamw", x) for x in OPTIONS.items()] + [("lamb", ("codes", OPTIONS["codes"]))]
)
def test_the_numbers_are_those_of_arrays(name, options, on_grid, whole, monkeypatch):
    if on_grid:
        monkeypatch.setitem(backends.BACKENDS, "cpu", InCuda(Grid()))
    dtype = jnp.bfloat16 if "master_weights" in options[1] else jnp.float32
    ends = []
    for flat in (False, True):
        kernel = jk.optimizers.FUNCTIONS[name](0.1, **options[1], flat_state=flat)
        now = draw(SHAPES, 0, dtype), kernel.program.init(draw(SHAPES, 0, dtype), kernel.hyper())
        step = jax.jit(native(kernel.program.bare_step))
        for seed in (1, 2, 3):
            now = step(*now, draw(SHAPES, seed, dtype, 0.1), kernel.hyper())
        if flat:
            assert len(now[1].slots.buffers) > 1
        ends.append((now[0], now[1]._replace(slots=unpacked(now[1].slots))))
    assert_same_bits(*ends)


@loops
@pytest.mark.parametrize("around", ["plain", "guard"])
def test_loops_work_within_the_buffers(around, whole):
    """Also beside gaps: no array is copied, cut out or put together."""
    kernel = jk.adamw(0.1, **OPTIONS[around], flat_state=True)
    params = {f"w{i}": jnp.ones((5, 7) if i % 2 else 35) for i in range(9)}
    state = kernel.program.init(params, kernel.hyper())
    assert len(state.slots.buffers) == 5
    step = jax.jit(native(kernel.program.bare_step), donate_argnums=(0, 1))
    text = step.lower(params, state, params, kernel.hyper()).compile().as_text()
    sizes = "|".join({str(x.size) for x in state.slots.buffers.values()} | {"35", "5,7", "29"})
    assert not re.search(rf"= \w+\[({sizes})\]\S* (copy|slice|concatenate|dynamic-update-slice|fusion)\(", text)
    assert len(re.findall(r"(?:may|must)-alias\)", text.splitlines()[0])) == len(jax.tree.leaves((params, state)))


@loops
def test_scalars_of_many_arrays_are_computed_at_once(whole, monkeypatch):
    """In however many buffers the arrays are."""
    monkeypatch.setitem(backends.BACKENDS, "cpu", InCuda(Grid()))
    params, found = {f"w{i}": jnp.ones(40) for i in range(40)}, []
    for flat in (False, True):
        kernel = jk.lamb(0.1, flat_state=flat)
        state = kernel.program.init(params, kernel.hyper())
        text = jax.jit(native(kernel.program.bare_step)).lower(params, state, params, kernel.hyper()).as_text()
        found.append([text.count(f"stablehlo.{name} ") for name in ("select", "multiply", "divide", "sqrt")])
    assert found[0] == found[1]


@loops
def test_optimizers_pack_and_unpack_them(whole, monkeypatch):
    pairs = [
        (jk.Adam(0.1, flat_state=x), [jk.Variable(jnp.ones(40), name=f"w{i}") for i in range(FEW)])
        for x in (None, False)
    ]
    for optimizer, vs in pairs:
        for i in range(3):
            optimizer.apply_gradients([(v.value + i, v) for v in vs])
            if i == 1:
                optimizer.get_slot(vs[0], "momentum").assign(jnp.full(40, 3.0))
        assert isinstance(optimizer._kept.slots, Packed) == (optimizer is pairs[0][0])
    assert len(pairs[0][0]._kept.slots.buffers) > 2
    assert_same_bits(*([x.value for x in vs] for _, vs in pairs))
    assert_same_bits(*(optimizer.state for optimizer, _ in pairs))


def test_a_gpu_with_kernels_packs_arrays_of_any_size(monkeypatch):
    def form(kernel, where):
        with Places(where).traced():
            return form_of(*kernel.program.parts(params)[0])

    params = {"w": jnp.ones((300, 300)), "b": jnp.ones(3)}
    assert form(jk.adam(), "cuda") == form(jk.adam(), "cpu") == slots.small()  # there is no GPU
    backend = InCuda(Grid())
    monkeypatch.setitem(backends.BACKENDS, "cuda", backend)
    assert form(jk.adam(), "gpu") == form(jk.lamb(), "cuda") == slots.whole() != form(jk.adam(), "cpu")
    assert form(jk.muon(), "gpu") == slots.small()  # XLA updates matrices
    with Places("gpu").traced():
        kernel = jk.adam(flat_state=True)
        state = jax.eval_shape(kernel.program.init, params, kernel.hyper())
    assert {name: x.size for name, x in state.slots.buffers.items()} == {"float32": 180080}
