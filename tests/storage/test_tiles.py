"""Blocks of another axis than the last one, as a TPU has them; the platform is only named, and the steps run here."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_keras as jk
from jaxopt_keras import checkpoint
from jaxopt_keras.engine.native import Unavailable, build
from jaxopt_keras.engine.slot_storage import known_zeros
from jaxopt_keras.language.places import Place, Places
from jaxopt_keras.storage import hash_rng
from jaxopt_keras.storage.blockwise import Blocks, Code, dequantize, quantize, zeros
from jaxopt_keras.storage.tiles import Tiles, layout, tiles_for
from tests.storage.test_storage import every_code, numbers

SEED = hash_rng.seeds(0, ["x"], 1)[0]


def initial(kernel, params):
    """A state as a TPU has it."""
    with Places("tpu").traced():
        return kernel.program.init(params, kernel.hyper())


def params_of(*shape):
    return {"w": jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)}


# --- codes ------------------------------------------------------------------------------------------------------------


@every_code
@pytest.mark.parametrize(
    ("shape", "tiles"),
    [((256, 96), (-2, 64)), ((70, 33), (-2, 32)), ((3, 64, 40), (-3, 2)), ((3, 64, 40), (-1, 40)), ((0, 8), (-1, 8))],
    ids=str,
)
def test_codes_of_codes_are_the_same(code, shape, tiles):
    x = numbers(shape, code)
    stored = quantize(x, code, SEED, Tiles(*tiles))
    assert stored.shape == shape and dequantize(stored).shape == shape
    again = quantize(dequantize(stored), code, tiles=Tiles(*tiles))
    np.testing.assert_array_equal(again.codes, stored.codes)
    np.testing.assert_allclose(again.scales, stored.scales, rtol=2e-7)


@every_code
def test_they_are_the_blocks_of_the_turned_array(code):
    x = numbers((2, 512, 48), code)
    turned = quantize(x.swapaxes(1, 2), code)
    stored = quantize(x, code, tiles=Tiles(-2, code.block))
    np.testing.assert_array_equal(dequantize(stored), dequantize(turned).swapaxes(1, 2))
    np.testing.assert_array_equal(stored.scales, turned.scales.swapaxes(1, 2))


def test_codes_of_four_bits_are_packed_by_the_compiler():
    for signed, dtype in ((True, "int4"), (False, "uint4")):
        codes = quantize(jnp.ones((64, 40)), Code("int4", signed), tiles=Tiles(-2, 64)).codes
        assert codes.shape == (64, 40) and codes.dtype == jnp.dtype(dtype) and jk.nbytes(codes) == 64 * 40 // 2


@every_code
def test_zeros_are_zeros(code):
    for tiles in (None, Tiles(-2, 32)):
        found, wanted = zeros(jnp.ones((64, 40)), code, tiles), quantize(jnp.zeros((64, 40)), code, tiles=tiles)
        assert jax.tree.structure(found) == jax.tree.structure(wanted)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            assert np.array_equal(a, b) and a.dtype == b.dtype


def test_slots_that_start_as_zeros_are_not_encoded():
    kernel = jk.adamw(state_dtype="int8")
    assert "reduce_max" not in str(jax.make_jaxpr(kernel.program.init)(params_of(256, 256), kernel.hyper()))
    found = known_zeros(lambda p: (jnp.zeros_like(p), p - p, jnp.full(3, 1e-9), jnp.zeros((3, 0))), jnp.ones((2, 2)))
    assert found == (True, False, False, True)


# --- the choice -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((8192, 8192), (0, 1)), ((1_000_000, 64), (1, 0)), ((50257, 768), (0, 1)), ((50257, 192), (1, 0)),
        ((1000, 17), (1, 0)), ((3, 3, 64, 128), (2, 3)), ((3, 3, 128, 64), (3, 2)), ((768, 12, 64), (2, 0)),
        ((8, 4096, 64), (2, 1)), ((64, 64), (0, 1)), ((130, 4096), (0, 1)),
    ],
    ids=str,
)  # fmt: skip
def test_the_layout_is_the_compilers(shape, expected):
    assert layout(shape) == expected  # as libtpu's `input_formats` shows it


@pytest.mark.parametrize(
    ("shape", "platform", "expected"),
    [
        ((8192, 8192), "cpu", None), ((8192, 8192), "gpu", None), ((8192, 8192), "tpu", (-2, 256)),
        ((768, 3072), "tpu", (-2, 256)), ((1000, 4096), "tpu", (-2, 200)), ((1_000_000, 64), "tpu", (-1, 64)),
        ((50257, 768), "tpu", (-1, 768)), ((100_000,), "tpu", None), ((3, 3, 64, 128), "tpu", (-2, 64)),
    ],
    ids=str,
)  # fmt: skip
def test_blocks_fit_the_machine(shape, platform, expected):
    assert tiles_for(shape, 256, Place(platform, shape)) == expected


def test_blocks_follow_the_shards():
    assert tiles_for((50257, 768), 256, Place("cpu", (50257, 192))) == (-1, 192)
    assert tiles_for((768, 3072), 256, Place("cpu", (192, 3072))) is None
    assert tiles_for((768, 3072), 256, Place("cpu", (768, 768))) is None  # three whole blocks on each device
    assert tiles_for((50257, 768), 256, Place("tpu", (50257, 192))) == (-1, 192)
    with pytest.raises(ValueError, match="straddle shards"):
        tiles_for((64, 40), 256, Place("cpu", (64, 5)))  # five codes for each scale
    with pytest.raises(ValueError, match='straddle shards.* keep the slot in "bfloat16"'):
        tiles_for((64, 1028), 256, Place("cpu", (64, 257)))


# --- steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["int8", "int4", "float8"])
def test_a_step_follows_float32(form):
    kernel, plain, params = jk.adamw(0.1, state_dtype=form, engine="xla"), jk.adamw(0.1), params_of(256, 384)
    state, exact = initial(kernel, params), plain.init(params)
    assert state.slots["momentum"]["w"].tiles == (-2, Code(form, True).block)
    p = q = params
    for seed in range(5):
        grads = {"w": jnp.asarray(np.random.default_rng(seed).normal(size=(256, 384)), jnp.float32)}
        p, state = kernel.step(p, state, grads, donate=False)
        q, exact = plain.step(q, exact, grads, donate=False)
    assert float(jnp.mean(jnp.abs(p["w"] - q["w"]))) < {"int8": 0.01, "float8": 0.02, "int4": 0.06}[form]
    assert float(jnp.mean(jnp.abs(p["w"] - params["w"]))) > 0.1


def test_describe_tells_the_blocks():
    kernel = jk.lion(state_dtype="int8")
    assert kernel.describe(params_of(256, 384)).groups[0].kind.slots == ("momentum int8 in blocks",)
    with Places("tpu").traced():
        shapes = {"w": jax.ShapeDtypeStruct((256, 384), jnp.float32)}
        plan = kernel.describe(shapes)
    assert plan.groups[0].kind.slots == ("momentum int8 in blocks of 256 of axis -2",)
    assert plan.groups[0].kind.engine == "xla (on tpu)"


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_a_state_goes_on_on_another_platform(form):
    kernel, params = jk.adamw(0.1, state_dtype=form, engine="xla"), params_of(256, 384)
    here, there = kernel.init(params), initial(kernel, params)
    _, here = kernel.step(params, here, params, donate=False)
    _, there = kernel.step(params, there, params, donate=False)
    saved = checkpoint.to_dict(there)
    block = Code(form, True).block
    assert saved[f"slots/w/momentum.{form}@-2x{block}"].shape == there.slots["momentum"]["w"].codes.shape
    back = checkpoint.from_dict(kernel, params, saved)
    assert back.slots["momentum"]["w"].tiles is None
    error = np.abs(dequantize(back.slots["momentum"]["w"]) - dequantize(there.slots["momentum"]["w"]))
    assert error.max() <= np.asarray(there.slots["momentum"]["w"].scales).max() / (16 if form == "int8" else 2)


def mixed():
    """Parameters whose blocks on a TPU are of the axis before the last, of the last axis, and none."""
    return {"w": jnp.ones((256, 384)), "narrow": jnp.ones((1000, 64)), "b": jnp.ones(64)}


def engines_of(plan):
    return {path: group.kind.engine for group in plan.groups for path in group.paths}


def test_describe_and_a_warning_tell_blocks_of_another_platform(caplog, monkeypatch):
    monkeypatch.setenv("JAXOPT_KERAS_FALLBACK", "warn")
    kernel, params = jk.adamw(0.1, state_dtype="int8"), mixed()
    there = initial(kernel, params)
    assert engines_of(kernel.describe(params)) == dict.fromkeys(params, "native")
    wanted = {"w": "xla (blocks of 256 of axis -2, which are those of TPUs)", "narrow": "native", "b": "native"}
    assert engines_of(kernel.describe(params, there)) == wanted
    build.say.cache_clear()
    for _ in range(2):
        kernel.step(params, there, params, donate=False)
        with Places("tpu").traced():
            jax.make_jaxpr(kernel.program.step)(params, kernel.init(params), params, kernel.hyper())
    said = [record.getMessage() for record in caplog.records if record.name == "jaxopt_keras"]
    assert len(said) == 2 and all(
        "`momentum` of `" in x and "from_dict(kernel, params, to_dict(state))" in x for x in said
    )
    assert "blocks of 256 of axis -2, which are those of TPUs" in said[0]
    assert "blocks of the last axis, which are those of CPUs and GPUs" in said[1]


def test_blocks_of_another_platform_are_refused_where_they_must_be_native(monkeypatch):
    params = mixed()
    there = initial(jk.adamw(0.1, state_dtype="int8"), params)
    with pytest.raises(Unavailable, match="`momentum` of `w` is in blocks of 256 of axis -2"):
        jk.adamw(0.1, state_dtype="int8", engine="native").step(params, there, params, donate=False)
    monkeypatch.setenv("JAXOPT_KERAS_FALLBACK", "error")
    with pytest.raises(Unavailable, match="blocks of 256 of axis -2"):
        jk.adamw(0.2, state_dtype="int8", seed=1).step(params, there, params, donate=False)


def test_describe_takes_a_state_of_groups():
    kernel, params = jk.partition({"b": jk.sgd(0.1)}, jk.adamw(0.1, state_dtype="int8")), mixed()
    found = kernel.describe(params, initial(kernel, params))
    assert engines_of(found)["w"].startswith("xla (blocks of 256") and engines_of(found)["narrow"] == "native"


@pytest.mark.parametrize("form", ["int8", "int4", "float8"])
def test_a_checkpoint_goes_to_a_tpu_and_back(form):
    """int8 from a GPU goes on on a TPU, and the other way: as close as the same number of steps in one place."""
    kernel, params = jk.adamw(0.1, state_dtype=form), params_of(256, 384)
    shapes = jax.eval_shape(lambda: params)
    _, here = kernel.step(params, kernel.init(params), params, donate=False)
    with Places("tpu").traced():
        there = checkpoint.from_dict(kernel, shapes, checkpoint.to_dict(here))
    block = Code(form, True).block
    assert there.slots["momentum"]["w"].tiles == (-2, block)
    back = checkpoint.from_dict(kernel, params, checkpoint.to_dict(there))
    assert back.slots["momentum"]["w"].tiles is None
    first, last = (dequantize(x.slots["momentum"]["w"]) for x in (here, back))
    assert (
        float(jnp.mean(jnp.abs(first - last)) / jnp.mean(jnp.abs(first)))
        < {"int8": 0.02, "float8": 0.03, "int4": 0.2}[form]
    )
    new, _ = kernel.step(params, back, params, donate=False)
    plain, _ = kernel.step(params, here, params, donate=False)
    assert float(jnp.mean(jnp.abs(new["w"] - plain["w"]))) < {"int8": 0.005, "float8": 0.005, "int4": 0.05}[form]


def test_damaged_forms_are_refused():
    kernel, params = jk.lion(state_dtype="int8"), params_of(256, 384)
    saved = checkpoint.to_dict(initial(kernel, params))
    name = "slots/w/momentum.int8@-2x256"
    for other in ("int8@-2x64", "int8@-1x256", "int8@-9x256"):
        bad = {n: x for n, x in saved.items() if n != name} | {f"slots/w/momentum.{other}": saved[name]}
        with pytest.raises(ValueError, match="must have the shape"):
            checkpoint.from_dict(kernel, params, bad)


def test_init_sees_the_shards():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    kernel, shape = jk.lion(state_dtype="int8"), (257, 768 * 2)
    put = lambda spec: {"w": jax.device_put(jnp.ones(shape), NamedSharding(mesh, PartitionSpec(*spec)))}
    stored = kernel.init(put([None, "data"])).slots["momentum"]["w"]
    assert isinstance(stored, Blocks) and stored.tiles == (-1, 192)
    report = jk.sharding.report(kernel.step, put([None, "data"]), kernel.init(put([None, "data"])), put([None, "data"]))
    assert not report.count("all-gather")
    bad = {"w": jax.device_put(jnp.ones((64, 8 * 257)), NamedSharding(mesh, PartitionSpec(None, "data")))}
    with pytest.raises(ValueError, match="straddle shards"):
        kernel.init(bad)


def test_a_step_refuses_blocks_that_straddle_shards():
    """In a `jit` of the user's `init` does not see the shards of automatic axes."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    kernel, sharding = jk.lion(state_dtype="int8"), NamedSharding(mesh, PartitionSpec(None, "data"))
    params = {"w": jax.device_put(jnp.ones((257, 768 * 2)), sharding)}
    state = jax.jit(kernel.init)(params)
    assert state.slots["momentum"]["w"].tiles is None  # blocks of 256, shards of 192
    for _ in range(2):
        with pytest.raises(ValueError, match="straddle shards.*`momentum` of `w`.*`kernel.init\\(params\\)`"):
            kernel.step(params, state, params)
    moved = checkpoint.from_dict(kernel, params, checkpoint.to_dict(state))
    assert moved.slots["momentum"]["w"].tiles == (-1, 192)
    kernel.step(params, moved, jax.tree.map(jnp.copy, params))
    whole = {"w": jax.device_put(jnp.ones((256, 768 * 2)), NamedSharding(mesh, PartitionSpec("data")))}
    kernel.step(whole, jax.jit(kernel.init)(whole), jax.tree.map(jnp.copy, whole))


# --- bytes ------------------------------------------------------------------------------------------------------------


def test_bytes_on_a_tpu_are_those_of_whole_tiles():
    shapes = {(64, 64): 8192, (3, 3, 64, 64): 73728, (8192, 64): 8192 * 64, (): 128, (3,): 128, (3072,): 3072}
    for shape, size in shapes.items():
        struct = jax.ShapeDtypeStruct(shape, jnp.float32)
        assert jk.nbytes(struct) == 4 * int(np.prod(shape))
        with Places("tpu").traced():
            assert jk.nbytes(struct) == 4 * size


def test_pack_warns_of_matrices_on_a_tpu():
    tree = {"w": jnp.ones((4, 4)), "b": jnp.ones(4)}
    shapes = jax.eval_shape(lambda: tree)
    with Places("tpu").traced():
        with pytest.warns(UserWarning, match="1 arrays of more axes, the first at `w`"):
            jax.eval_shape(jk.pack, shapes)
        with warnings.catch_warnings(action="error"):
            jax.eval_shape(jk.pack, {"b": shapes["b"]})
