"""Libraries of CUDA kernels for 8-bit state, which are compared with our int8 state."""

import functools
from dataclasses import dataclass, field
from typing import Any

from benchmarks.parity.peer import load
from benchmarks.peers import torch
from benchmarks.peers.absent import absent
from benchmarks.problem import Problem
from benchmarks.runs import Implementation, Run, Wish


@dataclass(frozen=True)
class EightBits:
    """A library: its classes by the names of ours, their module, and their arguments."""

    name: str
    classes: dict[str, str]
    module: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def available(self, platform: str) -> str | None:
        if platform != "gpu":
            return "its kernels need CUDA"
        return absent(lambda: load(self.module), self.name) or torch.available(platform)

    def implementations(self, wish: Wish) -> list[Implementation]:
        name = self.classes.get(wish.rule.__name__)
        if wish.workload.kind != "arrays" or "int8" not in wish.storages or name is None:
            return []
        start = functools.partial(self.run, name=name)
        return [Implementation(f"{self.name}, int8 state", self.name, start, storage="int8")]

    def run(self, problem: Problem, name: str) -> Run:
        return torch.TorchRun(problem, make=getattr(load(self.module), name), **self.arguments)
