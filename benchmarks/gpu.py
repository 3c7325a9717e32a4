"""Compares steps on one GPU with the bars that the library sets itself: numbers first, then times.

    python -m benchmarks.gpu [--json FILE] [--dry-run]

A time is that of the device: twenty steps in one program, the least of several runs. torch's fused optimizer is timed
as a CUDA graph, if torch is installed. Bandwidth is a share of that of a copy in place, measured in the same run.
`--dry-run` needs no GPU: it runs tiny arrays on the CPU, and compares no time.
"""

import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_keras as jk
from benchmarks.workloads import WORKLOADS, Workload
from command import Parser, output_file

STEPS, RUNS, CALLS = 20, 5, 50
COPIED = 2**28  # elements of the array whose copy is timed
NEAR = (
    1e-3  # the greatest error of a right step, of the greatest number of an array: one code in int8 is 0.01 of a slot
)
MISSING = "There is no GPU here. `--dry-run` runs tiny arrays on the CPU"


class Row(NamedTuple):
    """A step, and its bars: the greatest ratio to another time, and the least share of the bandwidth of a copy."""

    name: str
    workload: str
    make: Callable[..., jk.Kernel]
    to: str = ""  # the row, or "torch", whose time is compared
    ratio: float | None = None
    share: float | None = None
    dtype: str = "float32"


GREAT = {"great": Workload("great", "one array of 1 G", {"w": (2**30,)})}
OWN, adamw = "gpt2 adamw", partial(jk.adamw, 1e-3, weight_decay=0.01)
ROWS = [
    Row(OWN, "gpt2", adamw, "torch", 0.92, 0.88),
    Row("resnet50 adamw", "resnet50", adamw, "torch", 0.75),
    Row("100 arrays of 64 x 64", "hundred", adamw, "torch", 0.9),
    Row("1000 arrays of 64", "many", adamw, "torch", 0.4),
    Row("lenet5 adamw", "lenet5", adamw, "torch", 0.5),
    Row("one array of 1 G", "great", adamw, "torch", 0.83, 0.95),
    *(
        Row(f"gpt2 {name}", "gpt2", partial(getattr(jk, name), 1e-3), share=0.85)
        for name in ("lion", "adadelta", "rmsprop", "ftrl", "nadam")
    ),
    Row("gpt2 adamw, int8", "gpt2", partial(adamw, state_dtype="int8"), OWN, 0.65, 0.8),
    Row(
        "gpt2 adamw, bf16+8, int8", "gpt2", partial(adamw, state_dtype="int8", master_weights="bf16+8"), share=0.75,
        dtype="bfloat16",
    ),
    Row("gpt2 adamw, clip", "gpt2", partial(adamw, global_clipnorm=1.0), OWN, 1.2),
    Row("gpt2 lamb", "gpt2", partial(jk.lamb, 1e-3), OWN, 1.6),
]  # fmt: skip


class Measured(NamedTuple):
    """The results of a row."""

    engine: str
    error: float
    seconds: float  # of one step on the device
    first: float  # seconds to trace, to compile and to run the first step
    call: float  # seconds of a step from Python, host and device
    bytes: int  # one read of gradients, parameters and state, and one write of parameters and state


def drawn(shapes: dict[str, tuple[int, ...]], dtype: str, scale: float) -> dict[str, Any]:
    """Return a tree of normal numbers."""
    keys = jax.random.split(jax.random.key(0), len(shapes))
    make = lambda key, shape: (jax.random.normal(key, shape) * jnp.float32(scale)).astype(dtype)
    return {name: make(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}


def error(row: Row) -> float:
    """Return the greatest difference of two steps from those by XLA, relative to the greatest number of an array."""
    shapes = {"w": (129, 256), "v": (5003,), "b": (17,)}
    params, grads = drawn(shapes, row.dtype, 1.0), drawn(shapes, row.dtype, 0.01)
    ends = []
    for engine in ("auto", "xla"):
        kernel, p = row.make(engine=engine), params
        state = kernel.init(p)
        for _ in range(2):
            p, state = kernel.step(p, state, grads, donate=False)
        ends.append([np.asarray(x).astype(float) for x in jax.tree.leaves(p)])
    return max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in zip(*ends, strict=True))


def measured(row: Row, tiny: bool) -> Measured:
    workload = (WORKLOADS | GREAT)[row.workload]
    shapes = {"w": (1000, 33), "b": (33,)} if tiny else workload.shapes
    kernel, wrong = row.make(), error(row)
    params, grads = drawn(shapes, row.dtype, 1.0), drawn(shapes, row.dtype, 0.01)
    engines = sorted({group.kind.engine for group in kernel.describe(params).groups})
    start = time.perf_counter()
    params, state = jax.block_until_ready(kernel.step(params, kernel.init(params), grads))
    first = time.perf_counter() - start

    def steps(params: Any, state: Any, grads: Any) -> Any:
        one = lambda _, now: kernel.step(now[0], now[1], grads, donate=False)
        return jax.lax.fori_loop(0, STEPS, one, (params, state))

    many, calls = jax.jit(steps, donate_argnums=(0, 1)), []
    seconds, params, state = least(many, params, state, grads)
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(CALLS):
            params, state = kernel.step(params, state, grads)
        jax.block_until_ready(params)
        calls.append((time.perf_counter() - start) / CALLS)
    moved = 3 * jk.nbytes(params) + 2 * jk.nbytes(state)
    return Measured(", ".join(engines), wrong, seconds / STEPS, first, min(calls), moved)


def least(run: Callable[..., Any], *args: Any) -> tuple[Any, ...]:
    """Return the least time of several runs, and what the last one returned for the first arguments, which it takes."""
    times, (*moving, last) = [], args
    moving = run(*moving, last)
    for _ in range(RUNS):
        jax.block_until_ready(moving)
        start = time.perf_counter()
        moving = jax.block_until_ready(run(*moving, last))
        times.append(time.perf_counter() - start)
    return (min(times), *moving)


def bandwidth(tiny: bool) -> float:
    """Return the bytes in a second of a copy in place: one read and one write of each element."""
    x = jnp.zeros(2**10 if tiny else COPIED, jnp.float32)
    run = jax.jit(lambda x, by: (jax.lax.fori_loop(0, STEPS, lambda _, x: x + by, x),), donate_argnums=0)
    return 8 * x.size * STEPS / least(run, x, jnp.float32(1))[0]


def torch_seconds(row: Row) -> float | None:
    """Return the time of torch's fused AdamW as a CUDA graph; None without torch for a GPU, or without memory."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch  # pyright: ignore[reportMissingImports]  # optional

    if not torch.cuda.is_available():
        return None
    try:
        return _torch_seconds(torch, (WORKLOADS | GREAT)[row.workload])
    except torch.cuda.OutOfMemoryError as failure:
        print(f"torch has no memory for {row.name}: {str(failure).splitlines()[0]}")
        return None


def _torch_seconds(torch: Any, workload: Workload) -> float:
    params = [torch.randn(s, device="cuda").requires_grad_() for s in workload.shapes.values()]
    for p in params:
        p.grad = torch.randn_like(p) * 0.01
    optimizer = torch.optim.AdamW(params, lr=1e-3, weight_decay=0.01, fused=True, capturable=True)
    for _ in range(3):
        optimizer.step()
    graph, times = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        optimizer.step()
    for _ in range(RUNS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(STEPS):
            graph.replay()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / STEPS)
    return min(times)


def judged(row: Row, found: Measured, other: float | None, copy: float, tiny: bool) -> dict[str, Any]:
    """Return the record of a row. `other`: the time that it is compared with."""
    ratio = found.seconds / other if other else None
    share = found.bytes / found.seconds / copy
    slow = (row.ratio and ratio and ratio > row.ratio) or (row.share and share < row.share)
    verdict = "WRONG" if not found.error < NEAR else "not timed" if tiny else "FAIL" if slow else "pass"
    if verdict == "pass" and row.ratio and ratio is None:
        verdict = "no torch"
    said = found._asdict() | {"name": row.name, "to": row.to, "ratio": ratio, "most": row.ratio}
    return said | {"share": share, "least": row.share, "verdict": verdict}


def line(x: dict[str, Any]) -> str:
    shown = lambda value, bar: "-" if value is None else f"{value:.2f}" + (f" ({bar})" if bar else "")
    cells = f"{1e6 * x['seconds']:.0f}", f"{1e6 * x['call']:.0f}", f"{x['first']:.1f}", shown(x["ratio"], x["most"])
    return " | ".join(["", x["name"], x["engine"], *cells, shown(x["share"], x["least"]), x["verdict"], ""]).strip()


def parser() -> Parser:
    parser = Parser("benchmarks.gpu", __doc__)
    parser.add_argument("--json", type=output_file, help="write the results to a file")
    parser.add_argument("--dry-run", action="store_true", help="tiny arrays, on a CPU too, without verdicts on times")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if jax.default_backend() != "gpu" and not arguments.dry_run:
        parser().exit(1, MISSING + "\n")
    copy = bandwidth(arguments.dry_run)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, a copy in place: {copy / 1e12:.2f} TB/s")
    print("| step | engine | device us | call us | first call s | ratio (most) | share (least) | verdict |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    records, own = [], None
    for row in ROWS:
        found = measured(row, arguments.dry_run)
        own = found.seconds if row.name == OWN else own
        by_torch = row.to == "torch" and not arguments.dry_run
        other = torch_seconds(row) if by_torch else own if row.to == OWN else None
        records.append(judged(row, found, other, copy, arguments.dry_run))
        print(line(records[-1]), flush=True)
    if arguments.json:
        device = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "copy": copy}
        versions = {"jaxlib": version("jaxlib"), "command": "python -m benchmarks.gpu"}
        arguments.json.write_text(json.dumps(device | versions | {"rows": records}, indent=1) + "\n")
    return int(any(x["verdict"] in ("WRONG", "FAIL") for x in records))


if __name__ == "__main__":
    raise SystemExit(main())
