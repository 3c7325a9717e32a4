"""bitsandbytes: 8-bit state in CUDA kernels. Beside our int8 state."""

import functools

from benchmarks.peers import torch
from benchmarks.problem import Problem
from benchmarks.runs import Implementation, Run, Wish
from jaxopt_keras.parity.peer import Absent, load

NAME = "bitsandbytes"
CLASSES = {"AdamW": "AdamW8bit", "Adam": "Adam8bit"}


def available(platform: str) -> str | None:
    if platform != "gpu":
        return "its optimizers need CUDA"
    try:
        load("bitsandbytes")
    except Absent as absent:
        return f"{absent}: pip install bitsandbytes"
    return torch.available(platform)


def implementations(wish: Wish) -> list[Implementation]:
    if wish.workload.kind != "arrays" or "int8" not in wish.storages or wish.rule.__name__ not in CLASSES:
        return []
    start = functools.partial(run, name=CLASSES[wish.rule.__name__])
    return [Implementation("bitsandbytes, int8 state", NAME, start, storage="int8")]


def run(problem: Problem, name: str) -> Run:
    return torch.TorchRun(problem, make=getattr(load("bitsandbytes").optim, name))
