"""Steps compiled for a TPU that is only described: the bytes, copies and memory that were reached; no TPU is needed.

Without libtpu (`make tpu` installs it) there is nothing to see.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jaxopt_keras as jk
from benchmarks import tpu, tpu_all, tpu_steps
from benchmarks.tpu_steps import STEPS, counted

pytestmark = [
    pytest.mark.skipif(not tpu.devices("v5e"), reason=tpu.MISSING),
    pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache"),  # it has no programs for TPUs
]

# By step: bytes of HBM for each parameter, and of temporary memory.
BARS = {
    "adamw": (28.1, 0.1), "bfloat16 slots": (20.1, 0.1), "int8 slots": (26, 0.2), "float8 slots": (26, 0.2),
    "int4 slots": (23, 0.2), "int8 slots, by Pallas": (17, 0.1),
    "bf16 parameters, bf16+8, int8 slots, by Pallas": (13, 0.2),
    "int8 slots, 1 M x 64": (26, 0.2), "int8 slots, 50257 x 768": (30, 0.2),
    "bf16 parameters": (22.1, 0.1), "bf16 parameters, bf16+16": (26.1, 0.1), "bf16 parameters, bf16+8": (24.1, 0.1),
    "bf16 parameters, bf16+16, bfloat16 slots": (18.1, 0.1), "bf16 parameters, bf16+8, bfloat16 slots": (16.1, 0.1),
    "bf16 parameters, bf16+8, int8 slots": (20, 0.2), "bf16 parameters, bf16+8, guard": (37.1, 0.1),
    "bf16 parameters, guard": (34.1, 0.1), "bf16 parameters, bf16+8, guarded groups": (37.1, 0.1),
    "bf16 parameters, accumulation, guard": (56.1, 0.1),
    "loss scale, bf16 parameters, bf16+8": (26.1, 0.1), "loss scale, bf16 parameters, accumulation": (36.1, 0.1),
    "guard": (44.1, 0.1), "guard, 1 M x 64": (44.1, 0.1),
    "accumulation": (41, 0.1), "accumulation, 1 M x 64": (41, 0.5), "average, overwriting": (36.1, 0.1),
    "loss scale, float16 parameters": (24.1, 0.1), "adadelta": (28.1, 0.1), "lamb": (41, 4.1),
}  # fmt: skip


@pytest.mark.parametrize("name", BARS)
def test_bytes_of_a_step(name):
    found, (moved, extra) = counted(STEPS[name], "v5e"), BARS[name]
    assert found.aliased == found.kept
    assert found.bytes <= moved and found.extra <= extra
    assert found.cost.copies <= (2 if "int4" in name or "float8" in name else 0)


def test_small_slots_are_small():
    exact, small = (counted(STEPS[f"{name}, 28 of 8192 x 4096"], "v5e") for name in ("adamw", "int8 slots"))
    assert small.aliased == small.kept
    assert small.arguments + small.temporary < 0.7 * (exact.arguments + exact.temporary)


@pytest.mark.parametrize(("make", "least"), [(jk.sgd, 18), (jk.lion, 24), (jk.adamw, 26)])
def test_bytes_of_masters(make, least):
    options = {"momentum": 0.9} if make is jk.sgd else {}
    step = tpu_steps.Step(lambda: make(0.1, master_weights="bf16+16", **options), "bfloat16")
    assert counted(step, "v5e").bytes < least + 0.1


@pytest.mark.parametrize("guard", ["", ", guard"])
def test_rows_do_not_copy_the_table(guard):
    found = counted(STEPS[f"1024 rows of 1 M x 64{guard}"], "v5e")
    assert found.aliased == found.kept and found.extra < 0.1  # a turned table would take 4 bytes for each element


@pytest.mark.parametrize("on_mesh", [False, True])
@pytest.mark.parametrize(
    "name", [*tpu_steps.RULES, "adamw, global norm", "loss_scaled, adamw, float16", "adamw, int8 slots"]
)
def test_every_rule_on_v6e(name, on_mesh):
    ((_, found),) = tpu_all.counts("v6e", on_mesh, [name])
    assert not isinstance(found, str) and found.aliased == found.kept


@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("form", [None, "int8", "bfloat16"])
def test_a_mesh_gathers_nothing(form, axes):
    mesh = Mesh(np.array(tpu.devices("v5e")), ("data",), axis_types=(axes,))
    where = {"tokens": PartitionSpec(None, "data"), "kernel": PartitionSpec("data"), "bias": PartitionSpec()}
    shapes = {"tokens": (5003, 768), "kernel": (768, 3072), "bias": (3072,)}
    struct = lambda name: jax.ShapeDtypeStruct(shapes[name], jnp.float32, sharding=NamedSharding(mesh, where[name]))
    params = {name: struct(name) for name in shapes}
    kernel = jk.adamw(1e-3, state_dtype=form)
    found = tpu_steps.count(kernel, params, params, NamedSharding(mesh, PartitionSpec()))
    assert found.cost.collectives == 0 and found.aliased == found.kept


@pytest.mark.parametrize(("spec", "exchanges"), [(("data",), 2), ((None, "data"), 2), ((), 1)])
def test_muon_exchanges_matrices_once_there_and_back(spec, exchanges):
    mesh = Mesh(np.array(tpu.devices("v5e")), ("data",))
    where, alone = (NamedSharding(mesh, PartitionSpec(*each)) for each in (spec, ()))
    params = {f"w{i}": jax.ShapeDtypeStruct((256, 256), jnp.float32, sharding=where) for i in range(16)}
    kernel = jk.muon(0.02)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        found = tpu_steps.count(kernel, params, params, alone)
    assert found.cost.collectives == exchanges
