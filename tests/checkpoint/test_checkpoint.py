"""One saved AdamW state restores into whatever is built around the same slots, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras import checkpoint
from jaxopt_keras.storage.blockwise import Blocks

RNG = np.random.default_rng(0)
SHAPES = {"embed": (64, 80), "dense": {"kernel": (80, 64), "bias": (64,)}, "scale": (), "none": (0, 3)}


def drawn():
    is_shape = lambda x: isinstance(x, tuple)
    return jax.tree.map(lambda s: jnp.asarray(RNG.normal(size=s), jnp.float32), SHAPES, is_leaf=is_shape)


PARAMS, GRADS = drawn(), [drawn() for _ in range(3)]


def trained(kernel, steps=3, params=PARAMS, pack=False):
    params = jk.pack(params) if pack else params
    state = kernel.init(params)
    for g in GRADS[:steps]:
        params, state = kernel.step(params, state, jk.pack(g) if pack else g, donate=False)
    return params, state


def schedule(step):
    return 0.01 / (1 + jnp.asarray(step, jnp.float32))


ADAMW = jk.adamw(0.01)
CONFIGS = {
    "the same": ADAMW,
    "schedule": jk.adamw(schedule),
    "clip": jk.adamw(0.01, global_clipnorm=1.0),
    "guard": jk.adamw(0.01, skip_nonfinite=True, skip_spikes=50.0),
    "ema": jk.adamw(0.01, use_ema=True),
    "accumulation": jk.adamw(0.01, gradient_accumulation_steps=3),
    "adam": jk.adam(0.01),
    "amsgrad": jk.adam(0.01, amsgrad=True),
    "nadam": jk.nadam(0.01),
    "partition": jk.partition({"dense": jk.adam(0.1, skip_nonfinite=True)}, default=jk.adamw(0.01)),
    "bfloat16": jk.adamw(0.01, state_dtype="bfloat16"),
    "int8": jk.adamw(0.01, state_dtype="int8"),
    "int4": jk.adamw(0.01, state_dtype="int4"),
    "loss scale": jk.loss_scaled(jk.adamw(0.01), 1.0),
    "loss scale of groups": jk.loss_scaled(jk.partition({"bias": jk.adamw(0.1)}, default=jk.adamw(0.01)), 1.0),
    "offload": jk.adamw(0.01, offload="pinned_host"),
}
LOSSY = {"bfloat16": 2**-8, "int8": 2**-4, "int4": 0.6}  # of a value: half a step, or of the greatest in its block
anything = pytest.mark.filterwarnings("ignore:The checkpoint differs")
every_config = pytest.mark.parametrize("name", CONFIGS)
PACKED = ("the same", "ema", "accumulation", "nadam", "partition", "int8", "offload")
trees = [(name, False) for name in CONFIGS] + [(name, True) for name in PACKED]
every_tree = pytest.mark.parametrize("name, packed", trees, ids=lambda x: "packed" * x if isinstance(x, bool) else x)


def slots(state):
    """Portable slots of Adam by name."""
    flat = checkpoint.to_dict(state, portable=True)
    return {n: x for n, x in flat.items() if n.endswith(("/momentum", "/velocity"))}


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name, strict=True)


def near(a, b, part):
    assert a.keys() == b.keys()
    for name in a:
        x, y = np.asarray(a[name], np.float32), np.asarray(b[name], np.float32)
        np.testing.assert_allclose(x, y, rtol=part, atol=part * np.max(np.abs(x), initial=0) / 4, err_msg=name)


@anything
@every_tree
def test_adamw_restores_into(name, packed):
    _, state = trained(ADAMW)
    saved, kernel = checkpoint.to_dict(state), CONFIGS[name]
    params = jk.pack(PARAMS) if packed else PARAMS
    there = checkpoint.from_dict(kernel, params, saved)
    expected = {n: x for n, x in saved.items() if n.startswith("slots/")}
    same(expected, slots(there)) if name not in LOSSY else near(expected, slots(there), LOSSY[name])
    assert int(there.count) == 3
    fresh = kernel.init(params)
    jax.tree.map(lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)), there, fresh)
    assert jax.tree.structure(there) == jax.tree.structure(fresh)
    kernel.step(params, there, jk.pack(GRADS[0]) if packed else GRADS[0], donate=False)


@anything
@every_tree
def test_and_back(name, packed):
    _, there = trained(CONFIGS[name], pack=packed)
    back = checkpoint.from_dict(ADAMW, PARAMS, checkpoint.to_dict(there))
    same(slots(there), slots(back)) if name != "bfloat16" else near(slots(there), slots(back), 0)
    assert int(back.count) == int(there.count) == (1 if name == "accumulation" else 3)


@every_config
def test_the_same_again_is_the_same_bit_for_bit(name):
    """In the middle of a window, with codes, and whatever else there is."""
    kernel = CONFIGS[name]
    params, state = trained(kernel, steps=2)
    again = checkpoint.from_dict(kernel, params, checkpoint.to_dict(state))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b), strict=True), state, again)
    expected, restored = (kernel.step(params, s, GRADS[2], donate=False) for s in (state, again))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), expected, restored)


def test_names_are_the_same_whatever_surrounds_the_rule():
    plain = {n for n in checkpoint.to_dict(trained(ADAMW)[1]) if n.startswith("slots/")}
    assert "slots/dense/kernel/momentum" in plain
    for name, kernel in CONFIGS.items():
        own = {n for n in checkpoint.to_dict(kernel.init(PARAMS), portable=True) if n.startswith("slots/")}
        rest = {n for n in own - plain if not n.endswith(("/average", "/gradient_accumulator", "/velocity_hat"))}
        assert plain <= own and not rest, name


def test_codes_have_names_of_their_own():
    state = jk.adamw(state_dtype={"momentum": "int8", "velocity": "int4"}).init(PARAMS)
    flat = checkpoint.to_dict(state)
    assert flat["slots/embed/momentum.int8"].dtype == np.int8
    assert flat["slots/embed/velocity.uint4"].shape == (64, 40)
    assert flat["slots/embed/velocity.scales"].dtype == np.float32
    assert "slots/embed/velocity" not in flat and "slots/dense/bias/velocity" in flat


@pytest.mark.parametrize("first", ["float32", "bf16+16", "bf16+8", None])
@pytest.mark.parametrize("then", ["float32", "bf16+16", "bf16+8", None])
@anything
def test_masters_are_converted(first, then):
    params = {"w": jnp.asarray(RNG.normal(size=(8, 8)), jnp.bfloat16)}
    grads = {"w": jnp.ones((8, 8))}
    a, b = (jk.adamw(1e-4, master_weights=kind) for kind in (first, then))
    state = a.init(params)
    for _ in range(3):
        params, state = a.step(params, state, grads, donate=False)
    moved = b.init(params) if first is None else checkpoint.from_dict(b, params, checkpoint.to_dict(state))
    if first and then:
        back = checkpoint.from_dict(jk.adamw(1e-4, master_weights="float32"), params, checkpoint.to_dict(moved))
        whole = checkpoint.from_dict(jk.adamw(1e-4, master_weights="float32"), params, checkpoint.to_dict(state))
        distance = np.abs(np.asarray(back.slots["master"]["w"] - whole.slots["master"]["w"]))
        last = np.abs(np.asarray(whole.slots["master"]["w"])) * 2.0 ** (-15 if "bf16+8" in (first, then) else -23)
        assert (distance <= last).all()
    elif then == "float32":  # none was saved: it starts as the parameter
        np.testing.assert_array_equal(moved.slots["master"]["w"], params["w"].astype(jnp.float32))


def test_nadam_from_adamw_knows_the_product_of_momenta():
    _, state = trained(ADAMW)
    _, other = trained(jk.nadam(0.01))
    there = checkpoint.from_dict(jk.nadam(0.01), PARAMS, checkpoint.to_dict(state))
    np.testing.assert_allclose(there.scalars["u_product"], other.scalars["u_product"], rtol=1e-6)


def test_a_window_that_is_too_long_starts_anew():
    long, short = (jk.adamw(0.01, gradient_accumulation_steps=k) for k in (4, 3))
    params, state = trained(long)
    assert int(state.scalars["micro_step"]) == 3
    there = checkpoint.from_dict(short, params, checkpoint.to_dict(state))
    assert int(there.scalars["micro_step"]) == 0
    with pytest.warns(UserWarning, match="gradient_accumulator"):  # a half window is lost
        checkpoint.from_dict(ADAMW, params, checkpoint.to_dict(state))


def test_groups_to_other_groups():
    """Each has a count of its own, which is kept where the group is."""
    few = jk.adamw(0.01, gradient_accumulation_steps=3)
    kernel = jk.partition({"bias$": few}, default=jk.adamw(0.01))
    params, state = trained(kernel)
    saved = checkpoint.to_dict(state)
    again = checkpoint.from_dict(kernel, params, saved)
    assert {g: int(s["step"]) for g, s in again.scalars.items()} == {"bias$": 1, "default": 3}
    with pytest.warns(UserWarning, match=r"scalars/bias\$/step"):
        assert int(checkpoint.from_dict(ADAMW, params, saved).count) == 3


@pytest.mark.parametrize(
    "params",
    [
        jnp.ones(3),
        {0: jnp.ones(3), 1: [jnp.ones(()), None, jnp.zeros((0, 2))]},
        {"ü/ .scales": jnp.ones(2), "a.int8": jnp.ones(2), 'x"\n': jnp.ones(2), "": jnp.ones(1)},
        jk.pack(jnp.ones((3, 2))),
        jk.pack({"b": jnp.ones(3), "a": [jnp.ones((2, 2)), jnp.ones(3, jnp.bfloat16)]}),
        (),
    ],
    ids=["bare", "ints", "odd", "packed bare", "packed", "nothing"],
)
def test_any_tree(params, tmp_path):
    kernel = jk.adamw(0.1)
    state = kernel.init(params)
    if jax.tree.leaves(params):
        grads = jax.tree.map(jnp.ones_like, params)
        params, state = kernel.step(params, state, grads, donate=False)
    checkpoint.save(tmp_path / "a.safetensors", state)
    again = checkpoint.load(tmp_path / "a.safetensors", kernel, params)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), again, state)


def test_x64_and_complex(x64, jax_defaults, tmp_path):
    params = {"z": jnp.ones(3, jnp.complex128), "x": jnp.ones((), jnp.float64)}
    kernel = jk.adam(0.1)
    params, state = kernel.step(params, kernel.init(params), {"z": params["z"] * 1j, "x": params["x"]}, donate=False)
    checkpoint.save(tmp_path / "a.safetensors", state)
    again = checkpoint.load(tmp_path / "a.safetensors", kernel, params)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), again, state)
    assert again.slots["momentum"]["z"].dtype == jnp.complex128


def test_optax_transformations_too():
    optax = pytest.importorskip("optax")
    tx = optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(1)), optax.adam(0.1))  # which keeps a random key
    kernel = jk.Kernel.from_optax(tx, skip_nonfinite=True)
    params = {"w": jnp.ones(3)}
    with jax.numpy_dtype_promotion("standard"):
        params, state = kernel.step(params, kernel.init(params), params, donate=False)
    again = checkpoint.from_dict(kernel, params, checkpoint.to_dict(state))
    numbers = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(numbers(a), numbers(b)), again, state)
    with pytest.raises(ValueError, match="Nothing in this checkpoint fits.*scalars/transformation/1/0/mu/v"):
        checkpoint.from_dict(kernel, {"v": jnp.ones(3)}, checkpoint.to_dict(state))
    with pytest.raises(ValueError, match="Nothing in this checkpoint fits"):
        checkpoint.from_dict(jk.adam(0.1), params, checkpoint.to_dict(state))


def test_a_kernel_inside_an_optax_transformation(recwarn):
    optax = pytest.importorskip("optax")
    kernel = jk.Kernel.from_optax(optax.chain(optax.clip(1.0), jk.adam(0.1, state_dtype="int8")))
    params = {"w": jnp.ones((4, 2048))}
    params, state = kernel.step(params, kernel.init(params), params, donate=False)
    again = checkpoint.from_dict(kernel, params, checkpoint.to_dict(state))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), again, state)  # complements too
    assert not recwarn.list
    coded = (f"slots/w/{slot}" for slot in ("momentum.int8", "momentum.scales", "velocity.uint8", "velocity.scales"))
    assert {n for n in checkpoint.to_dict(state) if "/1/" in n} == {
        f"scalars/transformation/1/{n}" for n in ("step", *coded)
    }


@pytest.mark.parametrize("suffix", [".safetensors", ""], ids=["file", "folder"])
@pytest.mark.parametrize("packed", [False, True], ids=["tree", "packed"])
def test_parameters_with_their_state(suffix, packed, tmp_path):
    kernel, path = jk.adamw(0.1, master_weights="bf16+16"), tmp_path / f"a{suffix}"
    start = {"b": jnp.ones(3), "a": {"w": jnp.ones((2, 4), jnp.bfloat16)}, "none": jnp.ones((0, 2))}
    start = jk.pack(start) if packed else start
    params, state = kernel.step(start, kernel.init(start), start, donate=False)
    checkpoint.save(path, state, params)
    again = checkpoint.load_params(path, start)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    there = again, checkpoint.load(path, kernel, again)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), there, (params, state))
    with pytest.raises(ValueError, match="without \\['other'\\]"):
        checkpoint.load_params(path, {"other": jnp.ones(1)})
    with pytest.raises(ValueError, match="`params/b` must have the shape"):
        checkpoint.load_params(path, {"b": jnp.ones(4)})


@pytest.mark.parametrize("suffix", [".safetensors", ""], ids=["file", "folder"])
def test_parameters_that_are_not_jax_arrays(suffix, tmp_path):
    params = {"array": np.arange(3, dtype=np.float32), "float": 0.5, "none": np.ones((0, 2), np.float32)}
    checkpoint.save(tmp_path / f"a{suffix}", ADAMW.init({"w": jnp.ones(3)}), params)
    again = checkpoint.load_params(tmp_path / f"a{suffix}", jax.tree.map(np.zeros_like, params) | {"float": 0.0})
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
        assert isinstance(a, jax.Array)
        np.testing.assert_array_equal(a, np.asarray(b, np.float32), strict=True)


def test_what_a_dict_holds_stays():
    """It is a copy: the next step may consume the state."""
    params, state = trained(ADAMW)
    saved = checkpoint.to_dict(state)
    before = {n: np.array(x) for n, x in saved.items()}
    there = checkpoint.from_dict(ADAMW, params, saved)
    ADAMW.step(jax.tree.map(jnp.copy, params), state, GRADS[0])
    ADAMW.step(jax.tree.map(jnp.copy, params), there, GRADS[0])
    same(before, saved)


def test_it_is_told():
    params, state = trained(ADAMW)
    saved = checkpoint.to_dict(state)
    less = {n: x for n, x in saved.items() if "bias" not in n}
    with pytest.warns(UserWarning, match="not saved and start fresh: `slots/dense/bias/momentum`, .*velocity`"):
        there = checkpoint.from_dict(ADAMW, params, less)
    assert not np.any(there.slots["velocity"]["dense"]["bias"]) and np.any(there.slots["velocity"]["dense"]["kernel"])
    with pytest.warns(UserWarning, match="does not use `slots/old/momentum`$"):
        checkpoint.from_dict(ADAMW, params, saved | {"slots/old/momentum": np.ones(2)})
    for orphan in ("hyper/beta_1.complement", "slots/dense/bias/momentum.scales"):
        with pytest.warns(UserWarning, match=f"does not use `{orphan}`$"):
            checkpoint.from_dict(ADAMW, params, saved | {orphan: np.ones(())})
    injecting = jk.adamw(0.01, inject_hyperparams="beta_1")
    with pytest.warns(UserWarning, match="does not use `hyper/beta_1.complement`; .* not saved .*: `hyper/beta_1`$"):
        orphan = {"hyper/beta_1.complement": np.ones(())}
        there = checkpoint.from_dict(injecting, params, saved | orphan, hyper=True)
    assert float(there.hyperparams["beta_1"].value) == np.float32(0.9)


def test_refused():
    params, state = trained(ADAMW)
    saved = checkpoint.to_dict(state)
    name = "slots/dense/bias/velocity"
    with pytest.raises(ValueError, match=f"`{name}` must have the shape \\(64,\\).*Received: shape \\(65,\\)"):
        checkpoint.from_dict(ADAMW, params, saved | {name: np.ones(65, np.float32)})
    with pytest.raises(TypeError, match=f"`{name}` must be convertible to float32. Received: an array of complex64"):
        checkpoint.from_dict(ADAMW, params, saved | {name: np.ones(64, np.complex64)})
    with pytest.raises(TypeError, match="must be an array"):
        checkpoint.from_dict(ADAMW, params, saved | {name: "x"})
    with pytest.raises(ValueError, match="at most 1. Received: format=2"):
        checkpoint.from_dict(ADAMW, params, saved | {"format": np.int32(2)})
    with pytest.raises(ValueError, match="must have an entry `format`"):
        checkpoint.from_dict(ADAMW, params, {"w": np.ones(3)})
    with pytest.raises(ValueError, match="Nothing in this checkpoint fits"):
        checkpoint.from_dict(ADAMW, {"other": jnp.ones(3)}, saved)
    with pytest.raises(TypeError, match="must be a mapping"):
        checkpoint.from_dict(ADAMW, params, [1])
    with pytest.raises(TypeError, match="`kernel` must be a kernel"):
        checkpoint.from_dict(jk.Adam(), params, saved)
    for path in ("none.safetensors", "none"):
        with pytest.raises(TypeError, match="`params` must be given for a kernel.*Received: params=None"):
            checkpoint.load(path, ADAMW)
    with pytest.raises(TypeError, match="`state` must be what.*Received: builtins.dict. For an optimizer of"):
        checkpoint.to_dict(params)
    with pytest.raises(ValueError, match="identified by their paths"):
        checkpoint.to_dict(ADAMW.init({"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}))
    coded = checkpoint.to_dict(jk.adamw(state_dtype="int8").init(PARAMS))
    with pytest.raises(ValueError, match="Received: codes of shape"):
        checkpoint.from_dict(ADAMW, params, coded | {"slots/embed/momentum.int8": np.ones((64, 79), np.int8)})


def test_codes_stay_codes():
    """Of the same kind: bit for bit. Of another: as near as the kind is."""
    eight, four = jk.adamw(0.01, state_dtype="int8"), jk.adamw(0.01, state_dtype="int4")
    params, state = trained(eight)
    again = checkpoint.from_dict(eight, params, checkpoint.to_dict(state))
    assert isinstance(again.slots["momentum"]["embed"], Blocks)
    same(checkpoint.to_dict(state), checkpoint.to_dict(again))
    near(slots(state), slots(checkpoint.from_dict(four, params, checkpoint.to_dict(state))), LOSSY["int4"])
    odd = {"w": jnp.asarray(RNG.normal(size=(64, 81)), jnp.float32)}  # two codes in a byte, and one by itself
    _, state = four.step(odd, four.init(odd), odd, donate=False)
    same(checkpoint.to_dict(state), checkpoint.to_dict(checkpoint.from_dict(four, odd, checkpoint.to_dict(state))))
