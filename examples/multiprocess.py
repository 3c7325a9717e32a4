"""Training on several processes: state sharded over all devices, a checkpoint, and a report of a step's cost.

    python -m examples.multiprocess                       two processes with two devices each, on this machine's CPU
    python -m examples.multiprocess --processes 4         four processes
    srun python -m examples.multiprocess --join           one of many processes: Slurm, GKE, TPU pods

With `--join` the script is one of many processes that a cluster has started; `jax.distributed` finds the others. The
script is the same on CPUs, GPUs and TPUs: nothing below names a platform.
"""

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxopt_keras as jk
from command import Parser, count, index, new_folder, progress
from jaxopt_keras.pure import sharding

WIDTH, BATCH = 64, 32
LIMIT_SECONDS = 300


def train(steps: int, save_to: str | None) -> float:
    """Fit a two-layer network, data-parallel with ZeRO-1, and return the last loss."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    kernel = sharding.zero1(jk.adamw(1e-2, global_clipnorm=1.0, skip_nonfinite=True), mesh)
    rng = np.random.default_rng(0)
    start = {"w1": rng.normal(size=(8, WIDTH)) / 3, "b1": np.zeros(WIDTH), "w2": rng.normal(size=(WIDTH, 1)) / 8}
    params = {name: on(mesh, PartitionSpec(), x.astype(np.float32)) for name, x in start.items()}
    state = kernel.init(params)

    def loss(params, x, y):
        return jnp.mean((jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] - y) ** 2)

    def step(params, state, x, y):
        value, grads = jax.value_and_grad(loss)(params, x, y)
        return *kernel.step(params, state, grads), value

    jitted, value = jax.jit(step, donate_argnums=(0, 1)), jnp.inf
    for i in range(steps):
        inputs = np.random.default_rng(i).normal(size=(BATCH, 8)).astype(np.float32)
        targets = np.sin(inputs.sum(1, keepdims=True))
        batch = [on(mesh, PartitionSpec("data"), x) for x in (inputs, targets)]  # each process provides its own shards
        if i == 0 and jax.process_index() == 0:
            print(sharding.report(jitted, params, state, *batch))
        params, state, value = jitted(params, state, *batch)
    if save_to:
        save(Path(save_to), (params, state))
    return float(value)


def on(mesh: Mesh, spec: PartitionSpec, x: np.ndarray) -> jax.Array:
    """Return `x` as one array of all processes; each of them stores its shards."""
    return jax.make_array_from_callback(x.shape, NamedSharding(mesh, spec), lambda index: x[index])


def save(path: Path, tree: object) -> None:
    """Write the shards of every process, read them back, and compare."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(path, tree)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(restored), strict=True):
        for written, read in zip(a.addressable_shards, b.addressable_shards, strict=True):
            np.testing.assert_array_equal(written.data, read.data)


def launch(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Start processes on this machine, and wait for them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "examples.multiprocess", *rest, "--address", f"127.0.0.1:{port}"]
    began, environment = time.monotonic(), os.environ | {"JAX_PLATFORMS": "cpu"}
    with contextlib.ExitStack() as files:
        outputs = [files.enter_context(tempfile.TemporaryFile("w+")) for _ in range(arguments.processes)]
        started = [
            subprocess.Popen([*command, "--process", str(i)], stdout=out, stderr=subprocess.STDOUT, env=environment)
            for i, out in enumerate(outputs)
        ]
        try:
            with progress(f"{arguments.processes} processes") as tell:
                while any(process.poll() is None for process in started):
                    if time.monotonic() - began > LIMIT_SECONDS:
                        raise TimeoutError(f"The processes have not ended after {LIMIT_SECONDS} seconds.")
                    tell(0, f"{arguments.steps} steps")
                    time.sleep(0.1)
            codes = [process.wait() for process in started]
        finally:
            for process in started:
                process.kill()
        for i, (code, out) in enumerate(zip(codes, outputs, strict=True)):
            out.seek(0)
            if i == 0 or code:
                print("\n".join(line for line in out.read().splitlines() if "[Gloo]" not in line))
    return max(map(abs, codes))


def parser() -> Parser:
    parser = Parser("examples.multiprocess", __doc__)
    add = parser.add_argument
    add("--processes", type=count, default=2, metavar="N", help="processes to start on this machine (default: 2)")
    add("--devices", type=count, default=2, metavar="N", help="CPU devices of each process (default: 2)")
    add("--steps", type=count, default=100, metavar="N", help="steps of training (default: 100)")
    add("--save", type=new_folder, metavar="DIR", help="a new folder for an Orbax checkpoint")
    add("--join", action="store_true", help="run as one of the processes of a cluster")
    add("--address", help=argparse.SUPPRESS)
    add("--process", type=index, help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.join:
        jax.distributed.initialize()
    elif options.process is None:
        return launch(options, sys.argv[1:] if arguments is None else arguments)
    else:
        jax.config.update("jax_num_cpu_devices", options.devices)
        jax.distributed.initialize(options.address, options.processes, options.process, heartbeat_timeout_seconds=10)
    loss = train(options.steps, options.save)
    multihost_utils.sync_global_devices("done")
    if jax.process_index() == 0:
        print(f"{jax.process_count()} processes, {jax.device_count()} devices: loss {loss:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
