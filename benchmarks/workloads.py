"""Workloads: their names, and the shapes of their arrays, which are those of the models."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Workload:
    """Arrays to be optimized.

    Kinds: "arrays" has dense gradients; "rows" has gradients of `rows` rows of a table; "training" has a perceptron's
    loss on a batch of `rows` samples, and a step is forward, backward and update in one.
    """

    name: str
    about: str
    shapes: dict[str, Shape]
    optimizer: str = "adamw"  # the default
    kind: Literal["arrays", "rows", "training"] = "arrays"
    rows: int = 0

    @property
    def parameters(self) -> int:
        return sum(map(math.prod, self.shapes.values()))

    @property
    def touched(self) -> int:
        """Return the greatest number of parameters that a step updates."""
        return sum(self.rows * s[1] for s in self.shapes.values()) if self.kind == "rows" else self.parameters

    def scaled(self, factor: float) -> "Workload":
        """Multiply every side of at least 16 by `factor`. Below 1 keep fewer arrays too, which compile faster."""
        if factor == 1:
            return self

        def side(n: int) -> int:
            return n if n < 16 else max(2, round(n * factor))

        shapes = {name: tuple(map(side, shape)) for name, shape in self.shapes.items()}
        if self.kind != "training":  # the shapes of layers must match
            shapes = some(shapes, math.ceil(len(shapes) * min(1.0, factor)))
        return replace(self, shapes=shapes, rows=max(2, round(self.rows * factor)) if self.rows else 0)

    def miniature(self) -> "Workload":
        """Return a few of its arrays with smaller, odd sides, for the slow comparison with float64 NumPy."""
        shapes = {name: tuple(min(n, 131) for n in shape) for name, shape in self.shapes.items()}
        if self.kind != "training":
            shapes = some(shapes, 4)
        return replace(self, shapes=shapes, rows=min(self.rows, 37))


def some(shapes: dict[str, Shape], count: int) -> dict[str, Shape]:
    """Return `count` of the shapes, evenly spread, with the first and the last."""
    names = list(shapes)
    if count >= len(names):
        return shapes
    step = (len(names) - 1) / max(count - 1, 1)
    return {names[round(i * step)]: shapes[names[round(i * step)]] for i in range(count)}


def lenet5() -> dict[str, Shape]:
    return {
        "conv1/kernel": (5, 5, 1, 6), "conv1/bias": (6,), "conv2/kernel": (5, 5, 6, 16), "conv2/bias": (16,),
        "dense1/kernel": (400, 120), "dense1/bias": (120,), "dense2/kernel": (120, 84), "dense2/bias": (84,),
        "dense3/kernel": (84, 10), "dense3/bias": (10,),
    }  # fmt: skip


def resnet50() -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}

    def convolution(name: str, side: int, inside: int, outside: int) -> None:
        shapes[f"{name}/kernel"] = (side, side, inside, outside)
        shapes[f"{name}/norm/scale"] = shapes[f"{name}/norm/bias"] = (outside,)

    convolution("stem", 7, 3, 64)
    inside = 64
    for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)]):
        for block in range(blocks):
            name = f"stage{stage}/block{block}"
            convolution(f"{name}/reduce", 1, inside, width)
            convolution(f"{name}/middle", 3, width, width)
            convolution(f"{name}/expand", 1, width, 4 * width)
            if block == 0:
                convolution(f"{name}/shortcut", 1, inside, 4 * width)
            inside = 4 * width
    return shapes | {"head/kernel": (2048, 1000), "head/bias": (1000,)}


def gpt2() -> dict[str, Shape]:
    shapes: dict[str, Shape] = {"tokens": (50257, 768), "positions": (1024, 768)}
    for layer in range(12):
        for name, inside, outside in [
            ("attention/in", 768, 2304), ("attention/out", 768, 768), ("mlp/in", 768, 3072), ("mlp/out", 3072, 768),
        ]:  # fmt: skip
            shapes |= {f"layer{layer}/{name}/kernel": (inside, outside), f"layer{layer}/{name}/bias": (outside,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"layer{layer}/{name}/scale": (768,), f"layer{layer}/{name}/bias": (768,)}
    return shapes | {"norm/scale": (768,), "norm/bias": (768,)}


def matrices(width: int) -> dict[str, Shape]:
    """Return the 48 matrices of GPT-2's layers, at another width."""
    sides = {"attention/in": (1, 3), "attention/out": (1, 1), "mlp/in": (1, 4), "mlp/out": (4, 1)}
    return {
        f"layer{layer}/{name}": (width * rows, width * columns)
        for layer in range(12)
        for name, (rows, columns) in sides.items()
    }


def perceptron(sides: Sequence[int]) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for i, (inside, outside) in enumerate(zip(sides, sides[1:], strict=False)):
        shapes |= {f"dense{i}/kernel": (inside, outside), f"dense{i}/bias": (outside,)}
    return shapes


WORKLOADS = {
    workload.name: workload
    for workload in [
        Workload("lenet5", "LeNet-5", lenet5()),
        Workload("resnet50", "ResNet-50", resnet50()),
        Workload("gpt2", "GPT-2 small", gpt2()),
        Workload("hundred", "100 arrays of 64 x 64", {f"w{i:02d}": (64, 64) for i in range(100)}),
        Workload("many", "1000 arrays of 64", {f"w{i:03d}": (64,) for i in range(1000)}),
        Workload("one", "one array of 100 M", {"w": (100_000_000,)}),
        Workload(
            "embedding", "1 M x 64, 1024 rows touched", {"table": (1_000_000, 64)}, "adam", kind="rows", rows=1024
        ),
        Workload("muon", "48 matrices of a 12-layer transformer of width 128", matrices(128), "muon"),
        Workload("muon768", "the 48 matrices of GPT-2 small", matrices(768), "muon"),
        Workload(
            "training", "a train step of a perceptron 784-512-512-10, batch 32", perceptron([784, 512, 512, 10]),
            kind="training", rows=32,
        ),
    ]
}  # fmt: skip
assert (len(lenet5()), WORKLOADS["lenet5"].parameters) == (10, 61_706)
assert (len(resnet50()), WORKLOADS["resnet50"].parameters) == (161, 25_557_032)
assert (len(gpt2()), WORKLOADS["gpt2"].parameters) == (148, 124_439_808)
