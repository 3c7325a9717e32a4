"""Other libraries' optimizers on a GPU, as CUDA graphs: torch's fused AdamW, and those with state of 8 bits."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.parity.peer import Absent, load
from benchmarks.workloads import Workload

STEPS, RUNS, CALLS = 20, 5, 50
RATE = {"lr": 1e-3, "weight_decay": 0.01}
PEERS: dict[str, Callable[[Any], Any]] = {  # an optimizer of parameters
    "torch": lambda p: load("torch").optim.AdamW(p, **RATE, fused=True, capturable=True),
    "FlashOptim": lambda p: load("flashoptim").FlashAdamW(p, **RATE, master_weight_bits=24),
    "bitsandbytes": lambda p: load("bitsandbytes.optim").AdamW8bit(p, **RATE),
    "torchao": lambda p: load("torchao.optim").AdamW8bit(p, **RATE),
}


class Times(NamedTuple):
    """Seconds of a step.

    Args:
        device: as a CUDA graph; as calls from Python where the library's step cannot be one.
        call: from Python, host and device.
    """

    device: float
    call: float
    is_graph: bool = True


def times(peer: str, workload: Workload, dtype: str) -> Times | str:
    """Return the times of a step of a library, or why there are none."""
    try:
        torch = load("torch")
        if not torch.cuda.is_available():
            return "this torch has no CUDA"
        found = _times(torch, PEERS[peer], workload, dtype)
        torch.cuda.empty_cache()  # for the next row, of ours
        return found
    except Absent as reason:
        return str(reason)
    except Exception as error:  # of any kind: no memory, a driver that is too old, a library for another torch
        return f"{peer} fails: {type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _times(torch: Any, make: Callable[[Any], Any], workload: Workload, dtype: str) -> Times:
    kind = getattr(torch, dtype)
    params = [torch.randn(s, device="cuda", dtype=kind).requires_grad_() for s in workload.shapes.values()]
    for p in params:
        p.grad = torch.randn_like(p) * 0.01
    optimizer = make(params)
    for _ in range(3):
        optimizer.step()
    call = least(torch, optimizer.step, CALLS)
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            optimizer.step()
    except RuntimeError:  # the step reads a number of the device on the host
        torch.cuda.synchronize()
        return Times(call, call, False)
    return Times(least(torch, graph.replay, STEPS), call)


def least(torch: Any, run: Callable[[], Any], count: int) -> float:
    """Return the least seconds of a call, of several runs of `count` calls."""
    found = []
    for _ in range(RUNS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            run()
        torch.cuda.synchronize()
        found.append((time.perf_counter() - start) / count)
    return min(found)
