"""Peak memory of an implementation, measured in a fresh process: parameters and state, and temporary memory of a step.

Gradients do not count: they are the same for all. `python -m benchmarks.memory JSON` is that process.
"""

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks import problem
from benchmarks.runs import Implementation, Run, Wish
from benchmarks.ways import candidates
from benchmarks.workloads import WORKLOADS

LIMIT_SECONDS = 300


class Memory(NamedTuple):
    """Memory in bytes."""

    held: int  # parameters and state
    transient: int | None  # additional, during a step; None: unknown on this system

    @property
    def peak(self) -> int:
        return self.held + (self.transient or 0)


def measured(implementation: Implementation, wish: Wish, optimizer: str, scale: float) -> Memory | None:
    """Measure `implementation` in a fresh process; None if the process fails."""
    request = {
        "workload": wish.workload.name, "optimizer": optimizer, "dtype": wish.dtype, "scale": scale,
        "storages": wish.storages, "threads": wish.threads, "variants": wish.variants, "platform": wish.platform,
        "implementation": implementation.name, "library": implementation.library,
    }  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.memory", json.dumps(request)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=True)
        return Memory(**json.loads(done.stdout.splitlines()[-1]))
    except (subprocess.SubprocessError, ValueError, IndexError):
        return None


def high_water(reset: bool) -> int | None:
    """Return the greatest resident set of the process so far, in bytes; `reset` starts a new measurement."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def watched(run: Run, library: str, device: Any) -> Memory:
    """Measure the memory of `run` over a few steps, after the steps that compile."""

    def few() -> None:
        for _ in range(3):
            run.step()
            run.block()

    few()
    gc.collect()
    held = run.held()
    if device.platform == "cpu":
        before = high_water(reset=True)
        few()
        after = high_water(reset=False)
        return Memory(held, None if before is None or after is None else max(0, after - before))
    if library not in ("jaxopt_keras", "optax", "keras"):
        import torch  # pyright: ignore[reportMissingImports]  # optional

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        few()
        return Memory(held, torch.cuda.max_memory_allocated() - before)
    few()
    stats = device.memory_stats() or {}
    if "peak_bytes_in_use" not in stats:
        return Memory(held, None)
    return Memory(held, stats["peak_bytes_in_use"] - stats["bytes_in_use"])


def main(request: dict[str, Any]) -> None:
    device = jax.devices(request["platform"])[0]
    workload = WORKLOADS[request["workload"]].scaled(request["scale"])
    wish = Wish(
        workload, problem.RULES[request["optimizer"]], request["dtype"], tuple(request["storages"]),
        request["platform"], request["threads"], tuple(request["variants"]),
    )  # fmt: skip
    found = candidates(wish, [request["library"]])
    implementation = next(each for each in found if each.name == request["implementation"])
    with jax.default_device(device):
        given = problem.to_time(workload, request["optimizer"], request["dtype"])
        memory = watched(implementation.start(given), request["library"], device)
    print(json.dumps(memory._asdict()))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
