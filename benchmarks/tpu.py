"""Counts what XLA makes of a function for a TPU that is only described: kernels, copies, and bytes of its HBM.

The compiler comes with `pip install "jax[tpu]"`; neither a TPU nor a network is needed.
"""

import functools
import math
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from jax.experimental import topologies

CHIPS = ("v5e", "v6e")
# libtpu looks for the TPU of the machine when it is loaded, and for other processes that have it.
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_STDERR_LOG_LEVEL": "3",
}  # fmt: skip
MISSING = 'The compiler for TPUs is missing: `pip install "jax[tpu]"`, and set JAX_PLATFORMS=cpu'


@functools.cache
def devices(chip: str) -> tuple[Any, ...]:
    """Return a described 2 x 2 mesh of `chip`; nothing without the compiler."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        return tuple(topologies.get_topology_desc(platform="tpu", topology_name=f"{chip}:2x2").devices)
    except (NotImplementedError, RuntimeError):  # JAX without TPUs, or libtpu without this chip
        return ()


class Cost(NamedTuple):
    """The work of a program; a branch counts as the dearest one, and a loop as often as it runs."""

    kernels: int = 0  # on arrays; those on a few scalars do not count
    copies: int = 0  # of arrays, to other places or layouts
    bytes: float = 0.0  # that kernels and copies read from HBM and write to it, tiles filled up
    collectives: int = 0

    def __add__(self, other: Any) -> "Cost":
        return Cost._make(map(sum, zip(self, other, strict=True)))

    def times(self, n: int) -> "Cost":
        return Cost._make(x * n for x in self)


class Array(NamedTuple):
    """An array in the text of a program."""

    bytes: float  # with its tiles filled up
    is_scalar: bool
    in_hbm: bool


FREE = {
    "parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all", "partition-id", "replica-id",
    "optimization-barrier", "add-dependency", "copy-done", "slice-done", "async-done", "async-update",
}  # fmt: skip
CALLS = ("branch_computations", "true_computation", "false_computation", "body", "to_apply")
NARROW = {"pred": 8, "s4": 4, "u4": 4}
_TYPE = re.compile(r"\b([a-z]+\d\w*|pred)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_LINE = re.compile(r"^\s+(?:ROOT )?(%[\w.\-]+) = (.+?) ([a-z][a-z0-9\-]*)\((.*)$")


def arrays(text: str) -> list[Array]:
    """Return the arrays in the text of a type, with the bytes that they take in memory."""
    found = []
    for dtype, sides, order, rest in _TYPE.findall(text):
        bits = NARROW.get(dtype) or int(re.sub(r"\D", "", dtype.split("e")[0]) or 32)
        shape = [int(n) for n in sides.split(",") if n]
        laid = [shape[int(i)] for i in order.split(",") if i] or shape[::-1]  # the fastest axis first
        tile = re.search(r"T\(([\d,]+)\)", rest)
        tiles = [int(n) for n in tile[1].split(",")][::-1] if tile else []
        laid += [1] * (len(tiles) - len(laid))
        filled = [-(-n // t) * t for n, t in zip(laid, tiles, strict=False)] + laid[len(tiles) :]
        space = re.search(r"S\((\d+)\)", rest)
        size = math.prod(filled) * bits / 8
        found.append(Array(size, math.prod(shape) <= 1, space is None or space[1] == "0"))
    return found


def cost(text: str) -> Cost:
    """Count the text of a compiled program."""
    bodies: dict[str, list[str]] = {}
    name = entry = ""
    for line in text.splitlines():
        if head := re.match(r"^(ENTRY )?(%[\w.\-]+) \(.*\{$", line):
            name = head[2]
            bodies[name] = []
            entry = name if head[1] else entry
        elif name:
            bodies[name].append(line)

    @functools.cache
    def of(name: str) -> Cost:
        return functools.reduce(Cost.__add__, _costs(bodies.get(name, []), of), Cost())

    return of(entry)


def _costs(lines: list[str], of: Callable[[str], Cost]) -> Iterator[Cost]:
    """Yield the costs of the operations of one computation; `of` is the cost of another one, by name."""
    known: dict[str, list[Array]] = {}
    for line in lines:
        if (match := _LINE.match(line)) is None:
            continue
        result, kind, operation, rest = match.groups()
        known[result] = arrays(kind)
        operands, attributes = _split(rest)
        if operation in FREE or operation.endswith("-done"):
            continue
        named = re.findall(r"(\w+)=\{?((?:%[\w.\-]+(?:, )?)+)", attributes)
        called = [name for key, names in named if key in CALLS for name in names.split(", ")]
        if operation == "conditional":
            yield max(map(of, called), key=lambda x: x.bytes)
        elif operation == "while":
            count = re.search(r'known_trip_count"?:\{"n":"(\d+)"', attributes)
            yield functools.reduce(Cost.__add__, map(of, called)).times(int(count[1]) if count else 1)
        elif operation == "call":
            yield of(called[0])
        elif re.match(r"all-|reduce-scatter|collective-permute|ragged-all", operation):
            yield Cost(collectives=1)
        elif operation != "custom-call" or "ConcatBitcast" not in attributes and "AllocateBuffer" not in attributes:
            read = [x for name in operands for x in known.get(name, [])]
            moved = known[result][:2] if operation.endswith("-start") else [*known[result], *read]
            if any(not x.is_scalar for x in moved):
                is_copy = operation in ("copy", "copy-start", "slice-start")
                yield Cost(not is_copy, operation == "copy", sum(x.bytes for x in moved if x.in_hbm))


def _split(rest: str) -> tuple[list[str], str]:
    """Split what follows the opening bracket of an operation into the names of its operands and its attributes."""
    depth = 1
    for i, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return [*{*re.findall(r"%[\w.\-]+", rest[:i])}], rest[i:]
    return [], rest
