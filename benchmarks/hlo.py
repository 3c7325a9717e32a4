"""Counts the kernels that XLA launches for a function on a GPU, and their bytes; no GPU is needed."""

import contextlib
import functools
import math
import os
import re
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import topologies

from jaxopt_keras.engine.native.backends import BACKENDS

# The properties of an NVIDIA H100 SXM that XLA uses to decide what to fuse.
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


@functools.cache
def device() -> Any:
    """Return the GPU to compile for; None without a GPU and without the plugin."""
    if jax.default_backend() == "gpu":
        return jax.devices()[0]
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # only a run needs them
    try:
        return topologies.get_topology_desc(platform="cuda", target_config=H100, topology="1x1x1").devices[0]
    except NotImplementedError:  # no compiler for GPUs is installed
        return None


@contextlib.contextmanager
def with_our_kernels(capability: str = "9.0") -> Iterator[None]:
    """Compile steps with the library's kernels, as on a GPU on which they have right results.

    Args:
        capability: the compute capability of that GPU, if there is none here.
    """
    cuda: Any = BACKENDS["cuda"]  # only this backend has a launcher
    launcher = cuda.launcher
    before = launcher.described
    launcher.described = None if jax.default_backend() == "gpu" else capability
    try:
        yield
    finally:
        launcher.described = before


FREE = ("parameter", "constant", "bitcast", "tuple", "get-tuple-element")
BYTES = {"pred": 1, "bf16": 2} | {f"f8{kind}": 1 for kind in ("e4m3fn", "e5m2")}


def launches(text: str) -> list[tuple[str, int]]:
    """Return the operations that an optimized HLO module launches, with the bytes of their operands and results.

    Raises:
        ValueError: for a step with branches, whose launches are not known from its text.
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
    """Return the bytes of an array from its type in HLO."""
    each = BYTES.get(dtype) or int(re.sub(r"\D", "", dtype)) // 8
    return each * math.prod(map(int, filter(None, sides.split(","))))
