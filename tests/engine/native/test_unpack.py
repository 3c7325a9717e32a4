"""A buffer in pieces: `lax.split` in all that it does, and quicker to compile."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_keras as jk
from jaxopt_keras.engine.native import build, unavailable, unpack
from jaxopt_keras.packing.trees import unpack_buffer
from tests.laws.cases import assert_same_bits

SIZES = (*range(1, 18), 0, unpack.SMALL + 1, 64, 64)
COUNT = sum(SIZES)
WHOLE = jnp.sin(jnp.arange(float(COUNT)))

native_only = pytest.mark.skipif(bool(unavailable()), reason=unavailable())


def calls(function, *args):
    """How often a program calls what was compiled."""
    return jax.jit(function).lower(*args).as_text().count("@jaxopt_keras_")


def cubes(split):
    """A loss that reads some pieces, a large one among them."""
    return lambda whole, x: sum(jnp.sum(x * piece**3) for piece in split(whole, SIZES)[16:19])


@native_only
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "complex128", "int8", "bool", "int4"])
def test_pieces_of_every_type(dtype):
    with jax.enable_x64(True):
        whole = (jnp.arange(COUNT) % 7).astype(dtype)
        assert calls(lambda x: unpack_buffer(x, SIZES), whole) == (dtype != "int4")
        assert_same_bits(unpack_buffer(whole, SIZES), np.split(np.asarray(whole), np.cumsum(SIZES)[:-1]))


def test_keys_too():
    keys = jax.random.split(jax.random.key(0), 20)
    tree = dict(enumerate(keys))
    for x, y in zip(jk.pack(tree).unpack().values(), tree.values(), strict=True):
        assert bool(jnp.all(jax.random.key_data(x) == jax.random.key_data(y)))


def nested(f):
    step = lambda w: lax.cond(w[1] > 0, jax.grad(jax.checkpoint(f)), lambda v, _: v, w, 2.0)
    return lambda w: lax.scan(lambda carried, _: (carried - 0.1 * step(carried), None), w, length=3)[0]


TRANSFORMED = {
    "jvp": lambda f: lambda w: jax.jvp(f, (w, 2.0), (jnp.cos(w), 1.0)),
    "grad of grad": lambda f: lambda w: jax.grad(lambda v: jnp.vdot(jax.grad(f)(v, 2.0), jnp.cos(w)))(w),
    "vmap": lambda f: lambda w: jax.vmap(jax.grad(f))(jnp.stack([w, 2 * w]), jnp.arange(2.0)),
    "vmap of columns": lambda f: lambda w: jax.vmap(f, (1, None))(jnp.stack([w, 2 * w], 1), 2.0),
    "scan, cond, remat": nested,
}


@pytest.mark.parametrize("change", TRANSFORMED.values(), ids=TRANSFORMED)
def test_under_every_transformation(change):
    found, wanted = (jax.jit(change(cubes(split)))(WHOLE) for split in (unpack_buffer, lax.split))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-5), found, wanted)


@native_only
def test_where_it_is_not_native(monkeypatch):
    pieces = lambda whole: unpack_buffer(whole, SIZES)
    assert calls(pieces, WHOLE) == 1
    assert calls(lambda x: unpack_buffer(x, (5, COUNT - 5)), WHOLE) == 0  # few, and one of them large
    for platforms in (["cpu"], ["cpu", "cuda"]):
        assert "@jaxopt_keras_" not in export.export(jax.jit(pieces), platforms=platforms)(WHOLE).mlir_module()
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("JAXOPT_KERAS_FALLBACK", "warn")
    build.target.cache_clear()
    assert calls(lambda x: unpack_buffer(x, (COUNT - 20, *[1] * 20)), WHOLE) == 0


@native_only
def test_on_several_devices():
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
    spec, sizes, whole = PartitionSpec("x"), (2,) * 20, WHOLE[:40]
    spread = jax.device_put(whole, NamedSharding(mesh, spec))
    assert calls(lambda x: unpack_buffer(x, sizes), spread) == 0
    assert_same_bits(unpack_buffer(spread, sizes), np.split(np.asarray(whole), 20))
    first = jax.grad(lambda x: jnp.sum(unpack_buffer(x, sizes)[0] ** 2))
    each = jax.shard_map(first, mesh=mesh, in_specs=spec, out_specs=spec)
    assert calls(each, jnp.tile(whole, 4)) == 1
    assert_same_bits(jax.jit(each)(jnp.tile(whole, 4)), jnp.tile(first(whole), 4))


@native_only
@pytest.mark.parametrize("face", ["Packed", "Buffer"])
def test_equal_pieces_have_equal_kernels(face):
    """Compile time grows with the number of different kernels; no kernel slices the buffer itself."""
    if face == "Packed":
        whole, pieces = jk.pack(dict(enumerate(jnp.ones((24, 4, 2))))), lambda x: x.unpack().values()
    else:
        (buffer,) = jk.pack_variables([jk.Variable(jnp.ones((4, 2)), name=f"v{i}") for i in range(24)])
        whole, pieces = buffer.value, lambda x: buffer.split(x).values()

    def loss(whole, x):
        return sum(jnp.sum((piece * jnp.sum(x) - 1) ** 2) for piece in pieces(whole))

    text = jax.jit(jax.value_and_grad(loss)).lower(whole, jnp.ones(8)).compile().as_text()
    kernels = re.findall(r"^%?(?:fused|wrapped)\S* \(.*?^}", text, re.MULTILINE | re.DOTALL)
    different = {re.sub(r"%?\b[a-z_-]+[.\d]+|metadata=\{.*?\}", "", x) for x in kernels}  # but for names
    assert len(kernels) > 24 and len(different) <= 5
