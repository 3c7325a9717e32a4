"""Every kind of state with every serializer: what is read is what was written, and the training continues with it."""

import io
import pickle
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import jaxopt_keras as jk
from jaxopt_keras.storage.blockwise import Blocks

PARAMS = {"a": {"w": jnp.linspace(0, 1, 2048).reshape(8, 256), "b": jnp.ones(4)}, "e": jnp.ones((64, 64))}
LOW = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
GROUPS = {"a": jk.sgd(0.1, momentum=0.9)}


def zero1():
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    return jk.sharding.zero1(jk.adam(0.1), mesh)


KINDS = {
    "plain": (lambda: jk.adamw(0.1), PARAMS),
    "complements": (lambda: jk.adamw(0.1, inject_hyperparams=True), PARAMS),
    "int8": (lambda: jk.adamw(0.1, state_dtype="int8"), PARAMS),
    "int4": (lambda: jk.adamw(0.1, state_dtype="int4"), PARAMS),
    "float8": (lambda: jk.adamw(0.1, state_dtype="float8"), PARAMS),
    "flat": (lambda: jk.adamw(0.1, flat_state=True), PARAMS),
    "flat in int8": (lambda: jk.adamw(0.1, flat_state=True, state_dtype="int8"), PARAMS),
    "flat with absent slots": (lambda: jk.muon(0.1, flat_state=True), PARAMS),
    "packed in int8": (lambda: jk.adamw(0.1, state_dtype="int8"), jk.pack(PARAMS)),
    "partition": (lambda: jk.partition(GROUPS, default=jk.adam(0.1, inject_hyperparams=True)), PARAMS),
    "frozen": (lambda: jk.partition({"a": jk.frozen()}, default=jk.adam(0.1)), PARAMS),
    "loss_scaled": (lambda: jk.loss_scaled(jk.adam(0.1)), PARAMS),
    "masters": (lambda: jk.adam(0.1, master_weights="bf16+16"), LOW),
    "absent slots": (lambda: jk.muon(0.1), PARAMS),
    "window": (lambda: jk.adam(0.1, gradient_accumulation_steps=2, use_ema=True, skip_nonfinite=True), PARAMS),
    "zero1": (zero1, PARAMS),
}


def by_flax(tmp_path, state, like):
    serialization = pytest.importorskip("flax.serialization")
    return serialization.from_bytes(like, serialization.to_bytes(state))


def by_msgpack(tmp_path, state, like):
    serialization = pytest.importorskip("flax.serialization")
    data = serialization.msgpack_serialize(serialization.to_state_dict(state))
    return serialization.from_state_dict(like, serialization.msgpack_restore(data))


def by_orbax(tmp_path, state, like):
    ocp = pytest.importorskip("orbax.checkpoint")
    with ocp.StandardCheckpointer() as files:
        files.save(tmp_path / "state", state)
        files.wait_until_finished()
        return files.restore(tmp_path / "state", like)


def by_equinox(tmp_path, state, like):
    eqx = pytest.importorskip("equinox")
    is_small = lambda x: x.dtype == jnp.float8_e4m3fn  # NumPy's format has no float8: its bytes are written

    def write(f, x):
        eqx.default_serialise_filter_spec(f, x.view("uint8") if is_small(x) else x)

    def read(f, x):
        if not is_small(x):
            return eqx.default_deserialise_filter_spec(f, x)
        return eqx.default_deserialise_filter_spec(f, x.view("uint8")).view(x.dtype)

    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, state, write)
    file.seek(0)
    return eqx.tree_deserialise_leaves(file, like, read)


def by_pickle(tmp_path, state, like):
    return pickle.loads(pickle.dumps(state))


def by_cloudpickle(tmp_path, state, like):
    cloudpickle = pytest.importorskip("cloudpickle")
    return cloudpickle.loads(cloudpickle.dumps(state))


SERIALIZERS = [by_flax, by_msgpack, by_orbax, by_equinox, by_pickle, by_cloudpickle]


def trained(kind):
    maker, params = KINDS[kind]
    kernel = maker()
    return kernel, *kernel.step(params, kernel.init(params), params, donate=False)


def near(a, b):
    """To rounding: outside of an exported program, native loops may compute the step."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(np.float32(x), np.float32(y), rtol=1e-6), a, b)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y), strict=True), a, b)


@pytest.mark.parametrize("serializer", SERIALIZERS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_states(kind, serializer, tmp_path):
    kernel, params, state = trained(kind)
    read = serializer(tmp_path, state, kernel.init(params))
    same(read, state)
    same(*(kernel.step(params, jax.tree.map(jnp.asarray, s), params, donate=False) for s in (read, state)))


@pytest.mark.parametrize("kind", KINDS)
def test_export(kind):
    """A step that is compiled ahead of time, called with states that were made after."""
    kernel, params, state = trained(kind)
    step = jax.jit(lambda params, state, grads: kernel.update(grads, state, params))
    exported = jax.export.export(step)(params, state, params)
    expected = step(params, state, params)
    near(exported.call(params, state, params)[0], expected[0])
    pytest.importorskip("flatbuffers")  # JAX's serialization needs it
    again = jax.export.deserialize(exported.serialize())
    assert again.in_tree == exported.in_tree and again.out_tree == exported.out_tree
    near(again.call(params, state, params)[0], expected[0])


@pytest.mark.parametrize("kind", ["int8", "int4", "flat", "flat in int8", "flat with absent slots", "packed in int8"])
def test_structures_of_exported_files(kind):
    """The functions that `jax.export` calls for each node, without its library."""
    from jax._src.export import _export as registry

    def again(node):
        name, write = registry.serialization_registry[type(node)]
        _, read, build = registry.deserialization_registry[name]
        children, _ = jax.tree.flatten(node, is_leaf=lambda x: x is not node)
        _, static = jax.tree.structure(node, is_leaf=lambda x: x is not node).node_data()
        return build(read(write(static)), children)

    nodes = lambda x: isinstance(x, (Blocks, jk.Packed, optax.MaskedNode))
    _, params, state = trained(kind)
    for node in jax.tree.leaves((params, state.slots), is_leaf=nodes):
        if nodes(node):
            assert jax.tree.structure(again(node)) == jax.tree.structure(node)


def test_packed_trees_of_other_nodes_are_refused():
    from jaxopt_keras.pure.serializers import _plan

    packed = jk.pack(optax.EmaState(jnp.ones(2), jnp.ones(3)))
    with pytest.raises(TypeError, match="can be exported. Received: EmaState. Use an unpacked tree"):
        _plan(packed.treedef)


@pytest.mark.parametrize("saved, wanted", [("plain", "int8"), ("int4", "int8"), ("int8", "int4")])
def test_flax_refuses_other_formats(saved, wanted):
    """Codes of another format would be read as other numbers."""
    serialization = pytest.importorskip("flax.serialization")
    data = serialization.to_bytes(trained(saved)[2])
    kernel, params = KINDS[wanted][0](), KINDS[wanted][1]
    with pytest.raises(ValueError, match="A Blocks must have .* at path .*slots/momentum"):
        serialization.from_bytes(kernel.init(params), data)


@pytest.mark.parametrize("order", ["flax, ours, state", "ours, flax, state", "ours, state, flax"])
def test_flax_may_be_imported_at_any_time(order):
    pytest.importorskip("flax")
    lines = {
        "flax": "from flax import serialization",
        "ours": "import jax.numpy as jnp, jaxopt_keras as jk",
        "state": "state = jk.adam(0.1, state_dtype='int8').init({'w': jnp.ones((64, 64))})",
    }
    program = [lines[name] for name in order.split(", ")]
    program += ["serialization.to_bytes(state)", "import sys", "assert '_Waiting' not in str(sys.meta_path)"]
    ran = subprocess.run([sys.executable, "-c", "\n".join(program)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_our_import_does_not_import_flax():
    program = "import sys, jaxopt_keras; assert 'flax' not in sys.modules"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
