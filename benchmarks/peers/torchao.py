"""torchao: 8- and 4-bit state through torch.compile, compared with our int8 and int4 state."""

import functools

from benchmarks.parity.peer import load
from benchmarks.peers import torch
from benchmarks.peers.absent import absent
from benchmarks.problem import Problem
from benchmarks.runs import Implementation, Run, Wish

NAME = "torchao"
BITS = {"int8": "8bit", "int4": "4bit", "float8": "Fp8"}


def available(platform: str) -> str | None:
    return absent(lambda: load("torchao.optim"), "torchao") or torch.available(platform)


def implementations(wish: Wish) -> list[Implementation]:
    if wish.workload.kind != "arrays" or wish.rule.__name__ not in ("AdamW", "Adam"):
        return []
    return [
        Implementation(
            f"torchao, {storage} state", NAME, functools.partial(run, name=wish.rule.__name__ + BITS[storage]),
            storage=storage,
        )
        for storage in wish.storages
        if storage in BITS
    ]  # fmt: skip


def run(problem: Problem, name: str) -> Run:
    return torch.TorchRun(problem, make=getattr(load("torchao.optim"), name))
