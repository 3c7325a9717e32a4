"""How many kernels a step is on a GPU, and how many bytes they move: counted in what XLA compiles, not timed.

    python -m benchmarks.kernels [--workload one lenet5] [--step adamw lamb] [--page]

XLA compiles for the GPU that is here; where there is none, for an H100 as described below, which needs JAX's plugin and
CUDA's compiler alone: `pip install jax-cuda13-plugin jax-cuda13-pjrt nvidia-cuda-nvcc`, of the version of jaxlib.
"""

import argparse
import functools
import importlib.util
import math
import os
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

import jaxopt_keras as jk
from benchmarks.workloads import WORKLOADS

PAGE = Path(__file__).parent.parent / "docs" / "gpu.md"
MARK = "<!-- kernels -->"
MISSING = "There is neither a GPU nor JAX's plugin for CUDA. `pip install jax-cuda13-plugin jax-cuda13-pjrt`"

# What XLA asks of an NVIDIA H100 SXM before it decides what to fuse.
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132  fpus_per_core: 128  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448  shared_memory_per_core: 233472
  registers_per_block_limit: 65536  registers_per_core_limit: 65536
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  clock_rate_ghz: 1.98  memory_bandwidth: 3352320000000  l2_cache_size: 52428800  device_memory_size: 84942979072
}
platform_name: "CUDA"
device_description_str: "NVIDIA H100, described"
"""

ADAMW: dict[str, Any] = {"learning_rate": 1e-3, "weight_decay": 0.01}
STEPS: dict[str, tuple[Any, str]] = {  # the kernel, None for optax's AdamW; the parameters' dtype
    "optax adamw": (None, "float32"),
    "adamw": (jk.adamw(**ADAMW), "float32"),
    "adamw, global norm": (jk.adamw(**ADAMW, global_clipnorm=1.0), "float32"),
    "adamw, int8 slots": (jk.adamw(**ADAMW, state_dtype="int8"), "float32"),
    "adamw, bf16+8, bf16 slots": (jk.adamw(**ADAMW, master_weights="bf16+8", state_dtype="bfloat16"), "bfloat16"),
    "adamw, bf16+8, int8 slots": (jk.adamw(**ADAMW, master_weights="bf16+8", state_dtype="int8"), "bfloat16"),
    "lion": (jk.lion(1e-4), "float32"),
    "lamb": (jk.lamb(1e-3), "float32"),
}
STEPS |= {f"packed {name}": step for name, step in STEPS.items() if name.startswith("adamw")}
FEW = ["optax adamw", "adamw", "packed adamw"]
CASES = {
    "one": [name for name in STEPS if not name.startswith("packed")],
    "lenet5": [*FEW, "lamb"],
    "resnet50": FEW,
    "gpt2": [*FEW, "adamw, global norm", "adamw, int8 slots", "adamw, bf16+8, int8 slots"],
    "hundred": FEW,
    "many": [*FEW, "packed adamw, global norm", "packed adamw, int8 slots"],
}  # fmt: skip


@functools.cache
def device() -> Any:
    """What is compiled for; None without a GPU and without the plugin."""
    if jax.default_backend() == "gpu":
        return jax.devices()[0]
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # of what only a run needs
    try:
        return topologies.get_topology_desc(platform="cuda", target_config=H100, topology="1x1x1").devices[0]
    except NotImplementedError:
        return None


def placed(tree: Any) -> Any:
    """Shapes and dtypes alone, on the device."""
    where = SingleDeviceSharding(device())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)


class Counts(NamedTuple):
    kernels: int  # launches that are no copies; each counts, also one for a few scalars
    copies: int
    bytes: int  # operands and results of every launch
    least: int  # bytes, if gradients were read, parameters and state read and written, once
    kept: int  # arrays of parameters and state
    aliased: int  # of them, those that are written in place
    temporary: int  # bytes
    seconds: float  # to compile

    def row(self) -> str:
        passes, mib = f"{self.bytes / self.least:.2f}", f"{self.temporary / 2**20:.1f}"
        return f"{self.kernels} | {self.copies} | {self.aliased} of {self.kept} | {passes} | {mib} | {self.seconds:.0f}"


def counted(kernel: Any, params: Any) -> Counts:
    """The counts of a donated step of `kernel` (None: of optax's AdamW) on `params`, shapes and dtypes."""
    params = placed(params)
    if kernel is None:
        import optax

        transform = optax.adamw(**ADAMW)
        moving = placed(jax.eval_shape(transform.init, params))

        def step(params: Any, state: Any, grads: Any) -> Any:
            updates, state = transform.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, moving, params)
    else:
        state = placed(kernel.init(params))
        moving = state._replace(hyper={})
        lowered = kernel.compiled.step_donating.lower(params, moving, params, state.hyper)
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    text = compiled.as_text()
    launched = launches(text)
    copies = sum(name == "copy" for name, _ in launched)
    least = 3 * jk.nbytes(params) + 2 * jk.nbytes(moving)
    kept, aliased = len(jax.tree.leaves((params, moving))), len(re.findall(r"m[a-z]+-alias\)", text.splitlines()[0]))
    moved, temporary = sum(size for _, size in launched), compiled.memory_analysis().temp_size_in_bytes
    return Counts(len(launched) - copies, copies, moved, least, kept, aliased, temporary, seconds)


FREE = ("parameter", "constant", "bitcast", "tuple", "get-tuple-element")
BYTES = {"pred": 1, "bf16": 2} | {f"f8{kind}": 1 for kind in ("e4m3fn", "e5m2")}


def launches(text: str) -> list[tuple[str, int]]:
    """What the entry of an optimized HLO module runs, and the bytes of its operands and results.

    Raises:
        ValueError: for a step that branches, whose launches cannot be told from its text.
    """
    entry = text[text.index("\nENTRY ") :].splitlines()[2:]
    sizes: dict[str, int] = {}
    found = []
    for line in entry:
        match = re.match(r"\s+(?:ROOT )?(%\S+) = (.+?) ([a-z\-]+)\((.*?)\)(?:,|$)", line)
        if match is None:
            break
        name, shape, operation, operands = match.groups()
        sizes[name] = sum(size(*x) for x in re.findall(r"(\w+)\[([\d,]*)\]", shape))
        if operation in ("conditional", "while", "call"):
            raise ValueError(f"Only steps without branches can be counted. Received: one with a `{operation}`")
        if operation not in FREE:
            found.append((operation, sizes[name] + sum(sizes[x] for x in {*re.findall(r"%[\w.\-]+", operands)})))
    return found


def size(dtype: str, sides: str) -> int:
    """The bytes of one array, as HLO writes its type."""
    each = BYTES.get(dtype) or int(re.sub(r"\D", "", dtype)) // 8
    return each * math.prod(map(int, filter(None, sides.split(","))))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--step", nargs="+", choices=STEPS, help="not given: those that tell most of each workload")
    parser.add_argument("--page", action="store_true", help="write the table into docs/gpu.md")
    arguments = parser.parse_args(argv)
    if device() is None:
        parser.exit(1, MISSING + f"=={jax.lib.__version__}\n")
    lines = [
        f"Counted, not timed: {datetime.now(UTC):%Y-%m-%d}, jax {jax.__version__}, {device().device_kind}.", "",
        "| workload | step | kernels | copies | in place | passes | temporary MiB | compiled in s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    print(*lines, sep="\n")
    for workload in arguments.workload:
        for name in arguments.step or CASES[workload]:
            kernel, dtype = STEPS[name]
            tree = {k: jax.ShapeDtypeStruct(s, jnp.dtype(dtype)) for k, s in WORKLOADS[workload].shapes.items()}
            tree = jax.eval_shape(jk.pack, tree) if name.startswith("packed") else tree
            lines.append(f"| {WORKLOADS[workload].about} | {name} | {counted(kernel, tree).row()} |")
            print(lines[-1], flush=True)
    if arguments.page:
        before, _, after = PAGE.read_text().split(MARK)
        PAGE.write_text(f"{before}{MARK}\n" + "\n".join(lines) + f"\n{MARK}{after}")


if __name__ == "__main__":
    main()
