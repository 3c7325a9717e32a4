"""A step over quantized slots as one kernel computes what XLA's step does; the kernel is interpreted here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_keras as jk
from jaxopt_keras.language.places import Places

SHAPES = {"w": (512, 512), "bias": (512,), "tall": (600, 40)}  # the first one has a kernel

CASES = {
    "adamw": (jk.adamw, {}, "float32"),
    "adamw, float8": (jk.adamw, {"state_dtype": "float8"}, "float32"),
    "lion": (jk.lion, {"weight_decay": 0.1}, "float32"),
    "nadam": (jk.nadam, {}, "float32"),  # with a scalar of all arrays
    "rmsprop": (jk.rmsprop, {"momentum": 0.9, "centered": True}, "float32"),
    "bf16+8": (jk.adamw, {"master_weights": "bf16+8"}, "bfloat16"),
    "stochastic": (jk.adamw, {"rounding": "stochastic", "state_dtype": {"momentum": "int8"}}, "bfloat16"),
    "global norm": (jk.adamw, {"global_clipnorm": 0.5}, "float32"),
    "clipped": (jk.adamw, {"clipvalue": 0.5, "use_ema": True}, "float32"),
    "guard": (jk.adamw, {"skip_nonfinite": True, "gradient_accumulation_steps": 2}, "float32"),
}


def draw(seed, dtype):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in SHAPES.items()}


def run(kernel, dtype, calls):
    params = draw(0, dtype)
    with Places("tpu").traced():
        state = kernel.program.init(params, kernel.hyper())
    step = jax.jit(kernel.program.step)
    for i in range(calls):
        params, state = step(params, state, draw(i + 1, dtype), kernel.hyper())
    return params, state, str(jax.make_jaxpr(kernel.program.step)(params, state, params, kernel.hyper()))


@pytest.mark.parametrize("name", CASES)
def test_it_equals_xla(name):
    make, options, dtype = CASES[name]
    options = {"state_dtype": "int8"} | options
    (*one, text), (*xla, _) = (run(make(0.1, engine=e, **options), dtype, 2) for e in ("pallas", "xla"))
    assert text.count("pallas_call") == 1
    assert jax.tree.structure(one) == jax.tree.structure(xla)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(xla), strict=True):
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
        if jnp.issubdtype(x.dtype, jnp.floating) and x.size:
            assert np.mean(np.abs(x - y) > 1e-5 * (1 + np.abs(y))) < 1e-3  # a code at a tie may differ


def test_describe_tells_which_arrays_have_a_kernel():
    kernel = jk.adamw(state_dtype="int8", engine="pallas")
    with Places("tpu").traced():
        shapes = {name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in SHAPES.items()}
        plan = kernel.describe(shapes)
        engines = {path: group.kind.engine for group in plan.groups for path in group.paths}
        whole = jk.lamb(state_dtype="int8", engine="pallas").describe(
            {"w": jax.ShapeDtypeStruct((512, 512), jnp.float32)}
        )
    assert engines["w"] == "pallas" and engines["bias"] == "xla (no quantized slot)"
    assert engines["tall"] == "xla (not a matrix that is stored row by row)"
    assert whole.groups[0].kind.engine == "xla (a rule of whole arrays)"


def test_describe_tells_why_blocks_have_no_kernel():
    kernel, few = (jk.adamw(state_dtype=form, engine="pallas") for form in ("int8", "int4"))
    params, where = {"w": jnp.ones((512, 512))}, Places("tpu")
    engine = lambda plan: plan.groups[0].kind.engine
    assert engine(kernel.describe(params)) == "xla (blocks of the last axis, which are those of CPUs and GPUs)"
    with where.traced():
        shapes = {"w": jax.ShapeDtypeStruct((512, 512), jnp.float32)}
        assert engine(few.describe(shapes)) == "xla (codes of four bits)"
        mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
        params = jax.device_put(params, NamedSharding(mesh, PartitionSpec("data")))
        state = kernel.program.init(params, kernel.hyper())
        assert engine(kernel.describe(params, state)) == "pallas (on several devices inside `shard_map` only)"
