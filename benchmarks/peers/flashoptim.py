"""FlashOptim: 8-bit state in Triton kernels, one launch for each array. Beside our int8 state."""

import functools

from benchmarks.peers import torch
from benchmarks.problem import Problem
from benchmarks.runs import Implementation, Run, Wish
from jaxopt_keras.parity.peer import Absent, load

NAME = "flashoptim"
CLASSES = {"AdamW": "FlashAdamW", "Adam": "FlashAdam", "SGD": "FlashSGDW", "Lion": "FlashLion"}


def available(platform: str) -> str | None:
    if platform != "gpu":
        return "its kernels need CUDA"
    try:
        load("flashoptim")
    except Absent as absent:
        return f"{absent}: pip install flashoptim"
    return torch.available(platform)


def implementations(wish: Wish) -> list[Implementation]:
    if wish.workload.kind != "arrays" or "int8" not in wish.storages or wish.rule.__name__ not in CLASSES:
        return []
    start = functools.partial(run, name=CLASSES[wish.rule.__name__])
    return [Implementation("flashoptim, int8 state", NAME, start, storage="int8")]


def run(problem: Problem, name: str) -> Run:
    """Parameters stay in their own precision: ours beside it have no master weights either."""
    return torch.TorchRun(problem, make=getattr(load("flashoptim"), name), master_weight_bits=None)
