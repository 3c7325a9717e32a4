"""Slots in a few bits, stochastic rounding, and master weights."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_keras as jk
from jaxopt_keras.language.option_values import FORMATS
from jaxopt_keras.storage import hash_rng
from jaxopt_keras.storage.blockwise import Blocks, Code, block_length, dequantize, quantize
from jaxopt_keras.storage.masters import join_master, split_master
from jaxopt_keras.storage.rounding import stochastic
from tests.laws.cases import slots_at

CODES = [Code(name, signed) for name in ("int8", "int4", "float8", "float16") for signed in (True, False)]
every_code = pytest.mark.parametrize(
    "code", CODES, ids=lambda code: f"{code.name}-{'signed' if code.signed else 'positive'}"
)


def numbers(shape, code, seed=0):
    """Of sizes from 1e-4 to 1 of the greatest."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) * 10 ** rng.uniform(-4, 0, size=shape)
    return jnp.asarray(x if code.signed else np.abs(x), jnp.float32)


# --- codes ------------------------------------------------------------------------------------------------------------


@every_code
@pytest.mark.parametrize("shape", [(3, 1000), (2, 257), (64,), (3, 0), (2, 3, 130)], ids=str)
def test_codes_of_codes_are_the_same(code, shape):
    x = numbers(shape, code)
    stored = quantize(x, code, hash_rng.seeds(0, ["x"], 1)[0])
    assert stored.shape == shape and dequantize(stored).shape == shape and dequantize(stored).dtype == jnp.float32
    again = quantize(dequantize(stored), code)
    np.testing.assert_array_equal(again.codes, stored.codes)
    np.testing.assert_allclose(again.scales, stored.scales, rtol=2e-7)


@every_code
def test_codes_are_right_on_average(code):
    x = jnp.tile(numbers((1, 64), code), (4000, 1))
    mean = dequantize(quantize(x, code, hash_rng.seeds(0, ["x"], 1)[0])).mean(0)
    # The step between codes grows with the number; positive numbers below the smallest code are rounded up to it.
    greatest = float(jnp.abs(x).max())
    relative = {"int8": 1 / 16, "int4": 0.5 if code.signed else 1, "float8": 0.13, "float16": 1e-3}[code.name]
    least = greatest * (1e-3 if code.is_float else code.least / code.span)
    spread = relative * (np.abs(x[0]) + least) / 2 / 4000**0.5  # of the mean: at most half a step for one
    np.testing.assert_array_less(np.abs(mean - x[0]), 4 * spread + (0 if code.signed else relative * least))


@every_code
def test_the_greatest_of_a_block_is_exact(code):
    x = numbers((3, 1000), code)
    blocks = np.abs(np.asarray(x)).reshape(3, -1, block_length(1000, code.block))
    for seed in (None, hash_rng.seeds(1, ["x"], 2)[0]):
        found = np.abs(np.asarray(dequantize(quantize(x, code, seed)))).reshape(blocks.shape)
        np.testing.assert_allclose(found.max(-1), blocks.max(-1), rtol=1e-6)


@pytest.mark.parametrize("code", [code for code in CODES if not code.signed], ids=lambda code: code.name)
def test_what_is_positive_never_becomes_zero(code):
    x = jnp.asarray([[1.0, 1e-3, 1e-9, 1e-20, 1e-30, 0.0]])
    for seed in (None, hash_rng.seeds(0, ["x"], 0)[0]):
        found = np.asarray(dequantize(quantize(x, code, seed)))[0]
        assert np.all(found[:5] > 0) and found[5] == 0


@every_code
def test_zeros_and_what_is_not_finite(code):
    x = np.zeros((2, 257), np.float32)
    x[1, 5] = np.nan
    found = np.asarray(dequantize(quantize(jnp.asarray(x), code, hash_rng.seeds(0, ["x"], 0)[0])))
    assert np.all(found[0] == 0) and np.isnan(found[1, 5])


def test_four_bits_are_half_a_byte():
    assert quantize(jnp.ones((3, 128)), Code("int4", True)).codes.shape == (3, 64)
    assert quantize(jnp.ones((3, 129)), Code("int4", True)).codes.shape == (3, 65)


@pytest.mark.parametrize(
    ("n", "expected"), [(1, 1), (100, 100), (256, 256), (768, 256), (1000, 250), (257, 256), (300, 150)]
)
def test_blocks_divide_the_axis_where_they_can(n, expected):
    assert block_length(n, 256) == expected


# --- stochastic rounding ----------------------------------------------------------------------------------------------

DTYPES = [jnp.dtype(name) for name in ("bfloat16", "float16", "float8_e4m3fn")]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def draws(x, dtype, count=100_000):
    return np.asarray(stochastic(jnp.full(count, x, jnp.float32), dtype, hash_rng.seeds(0, ["w"], 3)[0])).astype(
        np.float64
    )


@every_dtype
def test_rounding_is_right_on_average(dtype):
    info = jnp.finfo(dtype)
    tie = 1 + float(info.eps) / 2
    for x in (1 / 3, -0.7, 1.9, tie, float(info.max) * 0.99, float(info.smallest_subnormal) * 2.5):
        found = draws(x, dtype)
        low, high = np.unique(found)
        assert low < x < high and abs(np.mean(found) - x) < 4 * (high - low) / 2 / len(found) ** 0.5


def test_bfloat16_is_rounded_without_bias():
    for x in (1 / 3, 1 + 2**-8, -0.7, 3.3e38, 1.5 * float(jnp.finfo(jnp.bfloat16).smallest_normal)):
        assert abs(np.mean(draws(x, jnp.bfloat16)) / np.float64(np.float32(x)) - 1) < 3e-5


@every_dtype
def test_what_is_exact_stays(dtype):
    info = jnp.finfo(dtype)
    for x in (0.0, -1.0, float(info.max), -float(info.max), float(info.smallest_subnormal), 1 + float(info.eps)):
        assert set(draws(x, dtype)) == {x}
    assert np.isnan(draws(np.nan, dtype)).all()


@every_dtype
def test_what_is_finite_stays_finite(dtype):
    x = min(float(jnp.finfo(dtype).max) * (1 + 1e-5), float(np.finfo(np.float32).max))
    assert set(draws(x, dtype)) == {float(jnp.finfo(dtype).max)}


def test_draws_differ_between_steps_arrays_and_seeds():
    bits = [
        hash_rng.bits((100,), hash_rng.seeds(*x)[0])
        for x in ((0, ["a"], 1), (0, ["a"], 2), (0, ["b"], 1), (1, ["a"], 1))
    ]
    assert all(np.mean(np.asarray(x == y)) < 0.01 for x, y in itertools.combinations(bits, 2))
    flat = np.asarray(hash_rng.uniform((100, 100), hash_rng.seeds(0, ["a"], 1)[0])).ravel()
    assert abs(flat.mean() - 0.5) < 0.02 and abs(np.corrcoef(flat[:-1], flat[1:])[0, 1]) < 0.05
    assert 0 <= flat.min() and flat.max() < 1


# --- master weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "error"), [("float32", 0), ("bf16+16", 2**-24), ("bf16+8", 2**-15)])
def test_masters(kind, error):
    rng = np.random.default_rng(0)
    master = jnp.asarray(rng.normal(size=10_000) * 10 ** rng.uniform(-30, 30, size=10_000), jnp.float32)
    p, slot = split_master(master, kind, jnp.bfloat16)
    np.testing.assert_array_equal(p, master.astype(jnp.bfloat16))
    assert slot.dtype.itemsize == {"float32": 4, "bf16+16": 2, "bf16+8": 1}[kind]
    found = np.asarray(join_master(p, slot, kind))
    assert np.max(np.abs(found / np.asarray(master) - 1)) <= error


@pytest.mark.parametrize("kind", ["float32", "bf16+16", "bf16+8"])
def test_masters_at_the_edges(kind):
    edges = [0.0, -0.0, np.inf, -np.inf, np.nan, float(np.finfo(np.float32).max), 1 + 2**-8, 1 + 3 * 2**-8]
    master = jnp.asarray(edges, jnp.float32)
    found = np.asarray(join_master(*split_master(master, kind, jnp.bfloat16), kind))
    finite = np.isfinite(np.asarray(master.astype(jnp.bfloat16), np.float32))
    np.testing.assert_allclose(found[finite], np.asarray(master)[finite], rtol=2**-15)
    assert np.isnan(found[4]) and found[2] == np.inf and found[3] == -np.inf


REMEDIES = [{"master_weights": kind} for kind in ("float32", "bf16+16", "bf16+8")] + [{"rounding": "stochastic"}]


@pytest.mark.parametrize("remedy", REMEDIES, ids=str)
@pytest.mark.parametrize("face", ["step", "update"])
def test_small_updates_move_bfloat16(remedy, face):
    kernel = jk.sgd(1e-3, **remedy)
    params = {"w": jnp.ones((64, 64), jnp.bfloat16)}
    grads = jax.tree.map(jnp.ones_like, params)

    def body(_, carried):
        params, state = carried
        if face == "step":
            return kernel.step(params, state, grads)
        updates, state = kernel.update(grads, state, params, full_precision=True)
        return jax.tree.map(lambda p, u: (p.astype(jnp.float32) + u).astype(p.dtype), params, updates), state

    params, _ = jax.jit(lambda *x: jax.lax.fori_loop(0, 1000, body, x))(params, kernel.init(params))
    assert abs(float(params["w"].astype(jnp.float32).mean())) < 5e-3
    assert params["w"].dtype == jnp.bfloat16


def test_without_a_remedy_they_do_not():
    kernel = jk.sgd(1e-3)
    params = jnp.ones(8, jnp.bfloat16)
    params, _ = kernel.step(params, kernel.init(params), jnp.ones(8, jnp.bfloat16))
    assert np.all(np.asarray(params) == 1)


def test_a_master_of_another_dtype():
    with pytest.raises(TypeError, match="bf16.8.*corrects bfloat16 parameters. Received: one of dtype float16"):
        jk.sgd(0.1, master_weights="bf16+8").init(jnp.ones(3, jnp.float16))
    state = jk.sgd(0.1, master_weights="bf16+8").init({"half": jnp.ones(3, jnp.bfloat16), "single": jnp.ones(3)})
    assert [*slots_at(state, "half")] == ["master"] and not slots_at(state, "single")
    assert jk.sgd(0.1, master_weights="float32").init(jnp.ones(3, jnp.float16)).slots["master"].dtype == jnp.float32


# --- in the optimizer -------------------------------------------------------------------------------------------------

LARGE = {"kernel": (128, 256), "bias": (256,)}
BYTES = {"float32": 8.01, "bfloat16": 4.01, "float16": 4.1, "float8": 2.2, "int8": 2.2, "int4": 1.2}


@pytest.mark.parametrize("form", FORMATS)
def test_bytes_of_adamw(form):
    params = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in {"w": (4096, 1024), "b": (1024,)}.items()
    }
    kernel = jk.adamw(state_dtype=form)
    plan = kernel.describe(params)
    assert plan.bytes == jk.nbytes(kernel.init(params)) and plan.elements == 4097 * 1024
    assert plan.bytes / plan.elements <= BYTES[form]


def test_bytes_of_everything_small():
    params = jax.ShapeDtypeStruct((4096, 1024), jnp.bfloat16)
    kernel = jk.adamw(state_dtype="int8", master_weights="bf16+8")
    assert (jk.nbytes(params) + jk.nbytes(kernel.init(params))) / params.size <= 5.2


def test_the_plan_says_why():
    params = {
        "table": jnp.zeros((2000, 3)),
        "w": jnp.zeros((64, 64)),
        "b": jnp.zeros(64),
        "z": jnp.zeros((64, 64), jnp.complex64),
    }
    with jax.numpy_dtype_promotion("standard"):  # complex numbers times floats
        plan = jk.adam(amsgrad=True, state_dtype="int8").describe(params)
    slots = {path: group.kind.slots for group in plan.groups for path in group.paths}
    assert slots["w"] == ("momentum int8 in blocks", "velocity int8 in blocks", "velocity_hat float32 (exact)")
    assert slots["b"][0] == "momentum float32 (fewer than 4096 elements)"
    assert slots["table"][0] == "momentum bfloat16 (last axis shorter than 16)"
    assert slots["z"][:2] == ("momentum complex64 (complex)", "velocity int8 in blocks")
    text = str(plan)
    assert (
        len({line.index("Adam") for line in text.splitlines()[1:-1]}) == 1 and text.splitlines()[-1].split()[0] == "4"
    )
    assert "AdamPart (element)" in str(jk.muon().describe({"b": jnp.zeros(3), "w": jnp.zeros((3, 3))}))
    assert "Foreign (tree)" in str(jk.Kernel.from_optax(optax.sgd(0.1)).describe({"b": jnp.zeros(3)}))


def test_a_form_for_each_slot():
    kernel = jk.adam(state_dtype={"velocity": "int8", "momentum": "bfloat16"})
    slots = kernel.init(jnp.zeros((64, 64))).slots
    assert slots["momentum"].dtype == jnp.bfloat16 and isinstance(slots["velocity"], Blocks)
    assert not slots["velocity"].code.signed


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"state_dtype": "int7"}, ValueError, "`state_dtype` must be one of .*Received: state_dtype='int7'"),
        ({"state_dtype": {"velocity": "int7"}}, ValueError, "`state_dtype` must be one of"),
        (
            {"state_dtype": {"speed": "int8"}},
            ValueError,
            r"`speed` is no slot of Adam. Its slots are \['momentum', 'velocity'",
        ),
        ({"state_dtype": 8}, ValueError, "`state_dtype` must be one of"),
        ({"master_weights": "bf16+4"}, ValueError, "`master_weights` must be one of"),
        ({"rounding": "up"}, ValueError, "`rounding` must be one of"),
        ({"seed": -1}, ValueError, "`seed` must be in"),
    ],
)
def test_what_is_refused(arguments, error, text):
    for make in (jk.adam, jk.Adam):
        with pytest.raises(error, match=text):
            make(0.1, **arguments)


def test_transformations_have_no_forms():
    with pytest.raises(TypeError, match="`state_dtype` needs a `Rule`"):
        jk.Kernel.from_optax(optax.sgd(0.1), state_dtype="int8")


def loss_after(kernel, steps=400):
    """A regression with two layers, where float32 gets to a small loss."""
    rng = np.random.default_rng(0)
    x, hidden = jnp.asarray(rng.normal(size=(512, 16)), jnp.float32), jnp.asarray(rng.normal(size=(16, 8)), jnp.float32)
    y = jnp.tanh(x @ hidden).sum(-1, keepdims=True)
    params = {
        "in": jnp.asarray(rng.normal(size=(16, 256)) / 4, jnp.float32), "bias": jnp.zeros((1, 256)),
        "out": jnp.asarray(rng.normal(size=(256, 256)) / 16, jnp.float32),
        "last": jnp.asarray(rng.normal(size=(256, 1)) / 16, jnp.float32),
    }  # fmt: skip

    def loss(p):
        return jnp.mean((jnp.tanh(jnp.tanh(x @ p["in"] + p["bias"]) @ p["out"]) @ p["last"] - y) ** 2)

    body = lambda _, c: kernel.step(*c, jax.grad(loss)(c[0]))
    params, _ = jax.jit(lambda *c: jax.lax.fori_loop(0, steps, body, c))(params, kernel.init(params))
    return float(loss(params))


@functools.cache
def float32_loss():
    return loss_after(jk.adamw(jk.schedules.CosineDecay(3e-3, 400)))


@pytest.mark.parametrize(("form", "more"), [("bfloat16", 0.15), ("float8", 0.15), ("int8", 0.15), ("int4", 0.5)])
def test_a_regression_gets_as_far(form, more):
    assert float32_loss() < 2e-3
    assert loss_after(jk.adamw(jk.schedules.CosineDecay(3e-3, 400), state_dtype=form)) <= (1 + more) * float32_loss()


def test_the_facade_shows_numbers():
    w = jk.Variable(np.ones((64, 64)), name="w")
    optimizer = jk.Adam(0.1, state_dtype="int8")
    for _ in range(3):
        optimizer.apply_gradients([(np.full((64, 64), 0.5), w)])
    slot = optimizer.get_slot(w, "momentum")
    assert slot.shape == (64, 64) and slot.dtype == jnp.float32
    np.testing.assert_allclose(slot.value, 0.5 * (1 - 0.9**3), rtol=0.02)
    weights = optimizer.get_weights()
    optimizer.set_weights(weights)
    for a, b in zip(weights, optimizer.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-7)
    slot.assign(jnp.ones((64, 64)))
    np.testing.assert_allclose(slot.value, 1, rtol=2e-7)
    assert isinstance(optimizer.state.slots["momentum"]["w"], Blocks)


def test_the_facade_changes_form_on_the_way():
    w = jk.Variable(np.ones((64, 64)), name="w")
    optimizer = jk.Adam(0.1)
    optimizer.apply_gradients([(np.full((64, 64), 0.5), w)])
    optimizer.state_dtype = "int8"
    assert isinstance(optimizer.state.slots["velocity"]["w"], Blocks)
    np.testing.assert_allclose(optimizer.get_slot(w, "momentum").value, 0.05, rtol=1e-6)
    optimizer.state_dtype = None
    assert optimizer.get_slot(w, "momentum").dtype == jnp.float32
    assert optimizer.state.slots["velocity"]["w"].dtype == jnp.float32
    np.testing.assert_allclose(optimizer.get_slot(w, "momentum").value, 0.05, rtol=1e-6)


def test_configs_and_pickles_keep_the_storage():
    settings = {"state_dtype": {"momentum": "int8"}, "master_weights": "bf16+8", "rounding": "stochastic", "seed": 3}
    optimizer = jk.Adam(0.1, **settings)
    again = jk.deserialize(jk.serialize(optimizer))
    assert again.get_config() == optimizer.get_config() and again.state_dtype == optimizer.state_dtype
    assert again.master_weights == "bf16+8" and again.rounding == "stochastic" and again.seed == 3


def test_lazy_rows_of_codes():
    table, rows = jnp.ones((500, 64)), [3, 7]
    kernel = jk.adam(0.1, sparse="lazy", state_dtype="int8")
    g = jk.IndexedSlices(jnp.ones((2, 64)), jnp.array(rows), (500, 64))
    params, state = kernel.step({"t": table}, kernel.init({"t": table}), {"t": g}, donate=False)
    moved = np.flatnonzero(np.any(np.asarray(params["t"]) != 1, axis=1))
    assert moved.tolist() == rows
    assert np.flatnonzero(np.any(np.asarray(dequantize(state.slots["momentum"]["t"])) != 0, axis=1)).tolist() == rows
    vector = jk.adam(0.1, sparse="lazy", state_dtype="int8").init(jnp.zeros(5000))
    assert vector.slots["momentum"].dtype == jnp.float32
