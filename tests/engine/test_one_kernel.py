"""On a TPU a new parameter reads its new slots, which changes no bit; the platform is only named here."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras.engine import one_kernel, pipeline, update
from jaxopt_keras.language.places import Places
from tests.laws.cases import assert_same_bits, operations

SHAPE = (64, 256)
KERNELS = {
    "adadelta": (jk.adadelta, {}, "float32"),
    "overwriting": (jk.adamw, {"use_ema": True, "ema_overwrite_frequency": 2}, "float32"),
    "int8": (jk.adamw, {"state_dtype": "int8"}, "float32"),
    "int4": (jk.adamw, {"state_dtype": "int4"}, "float32"),
    "float8": (jk.adamw, {"state_dtype": "float8"}, "float32"),
    "bf16+8": (jk.adamw, {"master_weights": "bf16+8", "state_dtype": "bfloat16"}, "bfloat16"),
    "bf16+16, guard": (jk.adamw, {"master_weights": "bf16+16", "skip_nonfinite": True}, "bfloat16"),
    "int8, guard": (jk.adamw, {"state_dtype": "int8", "skip_nonfinite": True}, "float16"),
    "accumulation": (jk.adamw, {"gradient_accumulation_steps": 2, "skip_nonfinite": True}, "bfloat16"),
}


def draw(seed, dtype):
    return {"w": jnp.asarray(np.random.default_rng(seed).normal(size=SHAPE), dtype)}


def reads(kernel, grads=None, platform="tpu", shape=SHAPE, dtype="float32"):
    """How many slots parameters of this shape read in a step, for the sake of one kernel."""
    params = {"w": jnp.ones(shape, dtype)}
    with Places(platform).traced():
        state = kernel.program.init(params, kernel.hyper())
        given = params if grads is None else grads
        traced = jax.make_jaxpr(kernel.program.step)(params, state, given, kernel.hyper())
    found = [e for e in operations(traced.jaxpr) if e.primitive.name == "and" and e.outvars[0].aval.shape == shape]
    return Counter(str(e.outvars[0].aval.dtype) for e in found)["int32"]


def one_by_one(function, *args):
    """Run each operation as a program of its own: together they are fused in other ways, and may be rounded so."""
    closed, out = jax.make_jaxpr(function, return_shape=True)(*args)
    return jax.tree.unflatten(
        jax.tree.structure(out), jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *jax.tree.leaves(args))
    )


SPECIAL = [0.0, -0.0, 1.0, -1e-8, 1e30, -1e30, np.inf, -np.inf, np.nan, 1e-40, 6e-8, 3.5, 1e-30, -2.0, 127.0, -128.0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float8_e4m3fn", "float64", "complex64"])
def test_no_bit_changes(dtype, x64):
    x = jnp.asarray(np.array(SPECIAL * 4).reshape(8, 8)).astype(dtype)
    y = np.random.default_rng(0).integers(-128, 128, (8, 8))
    others = ["int8", "uint8", "int4", "uint4", "int16", "float32", "bfloat16", "float8_e4m3fn", "float64"]
    slots = {name: jnp.asarray(y % 8 if "4" in name[-1] else y).astype(name) for name in others}
    slots |= {"same": x, "scale": jnp.ones((1, 8)), "scalar": jnp.ones(())}
    assert_same_bits(one_kernel._reading(x, slots), x)


@pytest.mark.parametrize("name", KERNELS)
def test_steps_are_the_same(name, monkeypatch):
    make, options, dtype = KERNELS[name]
    kernel = make(0.1, engine="xla", **options)

    def run():
        with Places("tpu").traced():
            params = draw(0, dtype)
            state = kernel.program.init(params, kernel.hyper())
            for i in range(3):
                params, state = one_by_one(kernel.program.step, params, state, draw(i + 1, dtype), kernel.hyper())
        return params, state

    one = run()
    assert reads(kernel, dtype=dtype)
    for module in (pipeline, update):
        monkeypatch.setattr(module, "in_one_kernel", lambda core, layout, gradients, out, slots: out)
    assert not reads(kernel, dtype=dtype)
    assert_same_bits(one, run())


def test_only_where_the_whole_array_moves():
    of = lambda make, **options: make(0.1, engine="xla", **options)
    assert reads(of(jk.adamw)) == 2 and reads(of(jk.sgd, momentum=0.9)) == 1 and reads(of(jk.sgd)) == 0
    assert reads(of(jk.adamw), platform="cpu") == 0
    assert reads(of(jk.adamw), grads={"w": None}) == 0
    rows = {"w": jk.IndexedSlices(jnp.ones((3, 256)), jnp.arange(3), SHAPE)}
    assert reads(of(jk.adam, sparse="lazy"), rows) == 0 and reads(of(jk.adam, sparse="dense"), rows) == 2
    assert reads(of(jk.adam, sparse="lazy", skip_nonfinite=True), rows) == 0
    assert reads(of(jk.lamb)) == 0  # its norms are known between two kernels
    assert reads(of(jk.muon)) == 0 and reads(of(jk.muon), shape=(256,)) == 2  # its fallback is Adam
    assert reads(of(jk.adamw), shape=()) == 0 and reads(of(jk.adamw), shape=(0, 3)) == 2


@pytest.mark.parametrize("shape", [SHAPE, (512, 8)], ids=str)  # the second one is written column by column
@pytest.mark.parametrize("make", [lambda k: k, jk.loss_scaled], ids=["guard", "loss scale"])
def test_guarded_rows_are_not_selected(make, shape):
    """A selection between the tables before and after a step would read all their rows."""
    guard = {"skip_nonfinite": True} if make is not jk.loss_scaled else {}
    kernel, params = make(jk.adam(sparse="lazy", engine="xla", **guard)), {"w": jnp.ones(shape)}
    rows = {"w": jk.IndexedSlices(jnp.ones((3, shape[1])), jnp.arange(3), shape)}
    with Places("tpu").traced():
        state = kernel.program.init(params, kernel.hyper())
        traced = jax.make_jaxpr(kernel.program.step)(params, state, rows, kernel.hyper())
    selected = [e for e in operations(traced.jaxpr) if e.primitive.name == "select_n"]
    assert selected and all(e.outvars[0].aval.shape != shape for e in selected)


def test_matrices_need_no_custom_partitioning():
    """JAX has none for a TPU: a program with one does not compile for several devices."""
    kernel, params = jk.muon(engine="xla"), {"w": jnp.ones(SHAPE)}

    def partitioned(platform):
        with Places(platform).traced():
            traced = jax.make_jaxpr(kernel.program.step)(params, kernel.init(params), params, kernel.hyper())
        return any("custom_partitioning" in str(e) for e in traced.jaxpr.eqns)

    assert partitioned("cpu") and not partitioned("tpu")
