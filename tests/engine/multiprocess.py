"""One of several processes of `test_multiprocess.py`: optimizers of every kind under `zero1`, beside one device.

python -m tests.engine.multiprocess ADDRESS PROCESSES PROCESS FOLDER save|restore
"""

import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxopt_keras import checkpoint
from jaxopt_keras.optimizers import FUNCTIONS
from jaxopt_keras.pure import sharding

SAVED = ("adamw", "adafactor", "muon")
NAMES = (*SAVED, "nadam", "lamb", "schedule_free_adamw")  # what is kept once, norms, averages; every one: test_sharding
SHAPES, STEPS = {"kernel": (8, 4), "bias": (4,)}, 5


def drawn(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def trained(kernel, put, steps=STEPS):
    params = put(drawn(0))
    state, step = kernel.init(params), jax.jit(kernel.step)
    for i in range(steps):
        params, state = step(params, state, put(drawn(1 + i)))
    return params, state


def check_matrices(mesh):
    """Rows of matrices are on different processes: Muon exchanges them twice, and equals one device."""
    sharded = NamedSharding(mesh, PartitionSpec("data"))
    rng, kernel = np.random.default_rng(0), FUNCTIONS["muon"](0.1)
    plain = [{f"w{i}": rng.normal(size=(16, 16)).astype(np.float32) for i in range(16)} for _ in range(2)]
    params, grads = (
        {n: jax.make_array_from_callback(x.shape, sharded, lambda index, x=x: x[index]) for n, x in tree.items()}
        for tree in plain
    )
    state = kernel.init(params)
    report = sharding.report(kernel.step, params, state, grads)
    assert (len(report.collectives), report.count("all-to-all")) == (2, 2), report
    after = multihost_utils.process_allgather(kernel.step(params, state, grads)[0], tiled=True)
    local = jax.device_put(plain, jax.local_devices()[0])
    expected, _ = kernel.step(local[0], kernel.init(local[0]), local[1])
    for name, x in expected.items():
        np.testing.assert_allclose(after[name], x, rtol=0, atol=2e-6)


def main(address, processes, process, folder, mode):
    jax.config.update("jax_num_cpu_devices", 2 if mode == "save" else 4)
    jax.distributed.initialize(address, int(processes), int(process), heartbeat_timeout_seconds=10)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    everywhere = NamedSharding(mesh, PartitionSpec())
    put = lambda tree: jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, everywhere, lambda index: x[index]), tree
    )
    worst, folder = 0.0, Path(folder)
    for name in NAMES if mode == "save" else SAVED:
        kernel = FUNCTIONS[name](0.01)
        zero = sharding.zero1(kernel, mesh)
        params, state = trained(zero, put, STEPS if mode == "save" else 0)
        if mode == "restore":  # what another number of processes saved
            saved = np.load(folder / f"{name}.npz")
            with ocp.StandardCheckpointer() as checkpointer:
                moved = checkpointer.restore(folder / name, params)
            restored = moved, checkpoint.load(folder / f"{name}.state", zero, params)
            assert jax.tree.map(lambda x: x.sharding, restored[1]) == jax.tree.map(lambda x: x.sharding, state)
            for i, x in enumerate(jax.tree.leaves(restored)):
                np.testing.assert_array_equal(np.asarray(x), saved[str(i)], strict=True)
            continue
        for key, x in jax.tree_util.tree_leaves_with_path(state.slots):
            assert [s.data.size for s in x.addressable_shards] == [x.size // 4] * 2, key
        whole = multihost_utils.process_allgather((params, state), tiled=True)
        expected, reference = trained(kernel, lambda tree: jax.device_put(tree, jax.local_devices()[0]))
        for a, b in zip(
            jax.tree.leaves((whole[0], whole[1].slots)), jax.tree.leaves((expected, reference.slots)), strict=True
        ):
            worst = max(worst, float(np.max(np.abs(a - np.asarray(b)), initial=0)))
        if name in SAVED:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(folder / name, params)
            checkpoint.save(folder / f"{name}.state", state)
            if process == "0":
                np.savez(folder / f"{name}.npz", **{str(i): x for i, x in enumerate(jax.tree.leaves(whole))})
    assert worst <= 2e-6, worst
    if mode == "save":
        check_matrices(mesh)
    multihost_utils.sync_global_devices("done")
    print(f"worst {worst:.1e}")


if __name__ == "__main__":
    main(*sys.argv[1:])
