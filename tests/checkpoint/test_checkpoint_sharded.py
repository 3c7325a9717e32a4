"""Sharded states: an Orbax folder, which other numbers of devices and other configurations read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_keras as jk
from jaxopt_keras import checkpoint
from jaxopt_keras.pure import sharding

ocp = pytest.importorskip("orbax.checkpoint")
P = PartitionSpec
RNG = np.random.default_rng(0)
VALUES = {
    "kernel": RNG.normal(size=(64, 512)), "dense/bias": RNG.normal(size=8), "none": np.zeros((0, 3)),
    "scale": np.ones(()),
}  # fmt: skip


def mesh(devices, axis_type=AxisType.Auto):
    return jax.make_mesh((devices,), ("data",), axis_types=(axis_type,), devices=jax.devices()[:devices])


def placed(m, spec=None):
    specs = {} if spec is None else {"kernel": spec, "dense/bias": spec}
    put = lambda n, x: jax.device_put(jnp.asarray(x, jnp.float32), NamedSharding(m, specs.get(n, P())))
    return {n: put(n, x) for n, x in VALUES.items()}


def trained(kernel, params, steps=2):
    state = kernel.init(params)
    for _ in range(steps):
        params, state = kernel.step(params, state, params, donate=False)
    return params, state


def where(tree):
    return jax.tree.map(lambda x: x.sharding.shard_shape(x.shape), tree)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A state over 8 devices, ZeRO-1."""
    path = tmp_path_factory.mktemp("orbax") / "state"
    m = mesh(8)
    _, state = trained(sharding.zero1(jk.adamw(0.01), m), placed(m))
    assert where(state.slots["momentum"]["kernel"]) == (8, 512)
    checkpoint.save(path, state)
    return path, checkpoint.to_dict(state)


@pytest.mark.filterwarnings("ignore:The checkpoint differs", "ignore:Sharding info not provided")
@pytest.mark.parametrize("devices", [4, 1])
def test_another_topology(devices, saved):
    path, expected = saved
    m = mesh(devices)
    params = placed(m)
    kernels = {
        "zero1": (sharding.zero1(jk.adamw(0.01), m), (64 // devices, 512)),
        "whole, with more around it": (jk.adamw(0.01, use_ema=True, skip_nonfinite=True), (64, 512)),
        "int8": (sharding.zero1(jk.adamw(0.01, state_dtype="int8"), m), None),
    }
    for name, (kernel, shape) in kernels.items():
        state = checkpoint.load(path, kernel, params)
        assert jax.tree.map(lambda x: x.sharding, state.slots) == jax.tree.map(
            lambda x: x.sharding, kernel.init(params).slots
        ), name
        if shape:
            assert where(state.slots["momentum"]["kernel"]) == shape
            for n, x in expected.items():
                if n.startswith("slots"):
                    np.testing.assert_array_equal(checkpoint.to_dict(state)[n], x, err_msg=name)
        kernel.step(params, state, params, donate=False)


def test_split_parameters(saved, tmp_path):
    """FSDP, and codes by code and scale; the same bit for bit."""
    path, expected = saved
    m = mesh(4)
    kernel, params = jk.adamw(0.01, state_dtype="int8"), placed(m, P("data"))
    _, state = trained(kernel, params)
    checkpoint.save(tmp_path / "coded", state)
    again = checkpoint.load(tmp_path / "coded", kernel, params)
    assert where(again) == where(state)
    jax.tree.map(np.testing.assert_array_equal, again, state)
    plain = checkpoint.load(path, jk.adamw(0.01), params)
    assert where(plain.slots["momentum"]["kernel"]) == (16, 512)
    np.testing.assert_array_equal(plain.slots["momentum"]["kernel"], expected["slots/kernel/momentum"])


def test_through_a_manager(tmp_path):
    m, small = mesh(8), mesh(2)
    kernel = sharding.zero1(jk.adamw(0.01), m)
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        for step in (1, 2):
            _, state = trained(kernel, placed(m), step)
            held = {n: x for n, x in checkpoint.to_dict(state, on_host=False).items() if x.size}
            manager.save(step, args=ocp.args.StandardSave(held))
        manager.wait_until_finished()
        same = checkpoint.from_dict(kernel, placed(m), manager.restore(2, args=ocp.args.StandardRestore(held)))
    jax.tree.map(np.testing.assert_array_equal, same, state)
    other = sharding.zero1(jk.adam(0.01), small)
    state = checkpoint.load(tmp_path / "run" / "1" / "default", other, placed(small))
    assert int(state.count) == 1 and where(state.slots["momentum"]["kernel"]) == (32, 512)


def test_a_file_of_a_sharded_state(tmp_path):
    """One process has all of it, so that a file can hold it; explicit axes read it."""
    m = mesh(8)
    _, state = trained(sharding.zero1(jk.adamw(0.01), m), placed(m))
    checkpoint.save(tmp_path / "a.safetensors", state)
    explicit = mesh(4, AxisType.Explicit)
    with jax.set_mesh(explicit):
        params = placed(explicit, P("data"))
        there = checkpoint.load(tmp_path / "a.safetensors", jk.adamw(0.01), params)
        jax.jit(jk.adamw(0.01).step)(params, there, params)
    np.testing.assert_array_equal(there.slots["velocity"]["kernel"], state.slots["velocity"]["kernel"])
    assert where(there.slots["velocity"]["kernel"]) == (16, 512)


def test_no_folder_of_ours(tmp_path):
    kernel, params = jk.adamw(), {"w": jnp.ones(3)}
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "none", kernel, params)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no Orbax checkpoint of names and arrays"):
        checkpoint.load(tmp_path / "empty", kernel, params)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "foreign", {"w": jnp.ones(3)})
    with pytest.raises(ValueError, match="must have an entry `format`"):
        checkpoint.load(tmp_path / "foreign", kernel, params)


def test_the_stateful_face(tmp_path):
    one, other = (jk.Adam(0.01) for _ in range(2))
    variables = [jk.Variable(jnp.ones((2, 2)), name="w")]
    one.apply([jnp.ones((2, 2))], variables)
    checkpoint.save(tmp_path / "folder", one)
    other.build(variables)
    checkpoint.load(tmp_path / "folder", other)
    np.testing.assert_array_equal(other.get_slot(variables[0], "velocity"), one.get_slot(variables[0], "velocity"))
