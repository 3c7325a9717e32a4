"""Compares steps on one GPU with the bars that the library sets itself: numbers first, then times.

    python -m benchmarks.gpu [--json FILE] [--dry-run]

A time is that of the device: twenty steps in one program, the least of several runs. Other libraries, where they are
installed, are timed as CUDA graphs (torch, FlashOptim, bitsandbytes, torchao). Bandwidth is a share of that of a copy
in place, measured in the same run. A step is also called from Python, and compiled with an empty and with a filled
cache. Last comes a training step of GPT-2 small, with and without its optimizer.
`--dry-run` needs no GPU: it runs tiny arrays on the CPU, and compares no time.
"""

import functools
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_keras as jk
from benchmarks import gpu_model, gpu_peers
from benchmarks.gpu_peers import CALLS, RUNS, STEPS, Times
from benchmarks.workloads import WORKLOADS, Workload
from command import Parser, output_file
from jaxopt_keras.engine.native.cuda import nvrtc

COPIED = 2**28  # elements of the array whose copy is timed
NEAR = (
    1e-3  # the greatest error of a right step, of the greatest number of an array: one code in int8 is 0.01 of a slot
)
MISSING = "There is no GPU here. `--dry-run` runs tiny arrays on the CPU"


class Row(NamedTuple):
    """A step, and its bars.

    Args:
        to: the row or the library whose time is compared.
        ratio: the greatest ratio to that time.
        share: the least share of the bandwidth of a copy.
        call: the greatest ratio of a call from Python to one of `to`.
        first: the most seconds of the first call, with an empty and with a filled cache.
        beside: libraries whose times are shown.
    """

    name: str
    workload: str
    make: Callable[..., jk.Kernel]
    to: str = ""
    ratio: float | None = None
    share: float | None = None
    dtype: str = "float32"
    call: float | None = None
    first: tuple[float, float] | None = None
    beside: tuple[str, ...] = ()


GREAT = {"great": Workload("great", "one array of 1 G", {"w": (2**30,)})}
FIRST = (3.0, 1.0)
OWN, adamw = "gpt2 adamw", partial(jk.adamw, 1e-3, weight_decay=0.01)
ROWS = [
    Row(OWN, "gpt2", adamw, "torch", 0.92, 0.88, call=1.1, first=FIRST),
    Row(f"{OWN}, flat state", "gpt2", partial(adamw, flat_state=True), "torch", 0.92, 0.88, call=1.1),
    Row("resnet50 adamw", "resnet50", adamw, "torch", 0.75),
    Row("100 arrays of 64 x 64", "hundred", adamw, "torch", 0.9),
    Row("1000 arrays of 64", "many", adamw, "torch", 0.4),
    Row("lenet5 adamw", "lenet5", adamw, "torch", 0.5),
    Row("one array of 1 G", "great", adamw, "torch", 0.83, 0.95),
    *(
        Row(f"gpt2 {name}", "gpt2", partial(getattr(jk, name), 1e-3), share=0.85)
        for name in ("lion", "adadelta", "rmsprop", "ftrl", "nadam")
    ),
    Row(
        "gpt2 adamw, int8", "gpt2", partial(adamw, state_dtype="int8"), OWN, 0.65, 0.8, first=FIRST,
        beside=("bitsandbytes", "torchao"),
    ),
    Row(
        "gpt2 adamw, bf16+8, int8", "gpt2", partial(adamw, state_dtype="int8", master_weights="bf16+8"), "FlashOptim",
        1.0, 0.75, "bfloat16",
    ),
    Row("gpt2 adamw, clip", "gpt2", partial(adamw, global_clipnorm=1.0), OWN, 1.2),
    Row("gpt2 lamb", "gpt2", partial(jk.lamb, 1e-3), OWN, 1.6),
    Row("gpt2 adamw, skip_nonfinite", "gpt2", partial(adamw, skip_nonfinite=True), OWN, 1.75),
    Row("gpt2 adamw, window of 4", "gpt2", partial(adamw, gradient_accumulation_steps=4)),
]  # fmt: skip


class Measured(NamedTuple):
    """The results of a row."""

    engine: str
    error: float
    seconds: float  # of one step on the device
    first: tuple[float, float]  # seconds to trace, to compile and to run the first step; the same from the cache
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


def measured(row: Row, wrong: float, tiny: bool) -> Measured:
    workload = (WORKLOADS | GREAT)[row.workload]
    shapes = {"w": (1000, 33), "b": (33,)} if tiny else workload.shapes
    kernel = row.make()
    params, grads = drawn(shapes, row.dtype, 1.0), drawn(shapes, row.dtype, 0.01)
    engines = sorted({group.kind.engine for group in kernel.describe(params).groups})
    first, state = [], jax.block_until_ready(kernel.init(params))
    for _ in range(2 if row.first else 1):
        jax.clear_caches()
        nvrtc.compiled.cache_clear()
        start = time.perf_counter()
        params, state = jax.block_until_ready(kernel.step(params, state, grads))
        first.append(time.perf_counter() - start)

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
    return Measured(", ".join(engines), wrong, seconds / STEPS, (first[0], first[-1]), min(calls), moved)


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


def judged(row: Row, found: Measured, other: Times | None, copy: float, tiny: bool) -> dict[str, Any]:
    """Return the record of a row. `other`: the times that it is compared with."""
    ratio = found.seconds / other.device if other else None
    share, call = found.bytes / found.seconds / copy, found.call / other.call if other else None
    slow = [
        name
        for name, value, bar in [
            ("ratio", ratio, row.ratio), ("share", -share, row.share and -row.share), ("call", call, row.call),
            *zip(("first", "from the cache"), found.first, row.first or (None, None), strict=True),
        ]
        if bar is not None and value is not None and value > bar
    ]  # fmt: skip
    verdict = "WRONG" if not found.error < NEAR else "not timed" if tiny else "pass"
    if verdict == "pass" and slow:
        verdict = f"FAIL ({', '.join(slow)})"
    elif verdict == "pass" and row.ratio and ratio is None:
        verdict = f"no {row.to}"
    said = found._asdict() | {"name": row.name, "to": row.to, "ratio": ratio, "most": row.ratio, "call_ratio": call}
    return said | {"share": share, "least": row.share, "verdict": verdict}


def line(x: dict[str, Any]) -> str:
    shown = lambda value, bar: "-" if value is None else f"{value:.2f}" + (f" ({bar})" if bar else "")
    first = " / ".join(f"{seconds:.1f}" for seconds in x["first"])
    cells = f"{1e6 * x['seconds']:.0f}", f"{1e6 * x['call']:.0f}", first, shown(x["ratio"], x["most"])
    return " | ".join(["", x["name"], x["engine"], *cells, shown(x["share"], x["least"]), x["verdict"], ""]).strip()


def parser() -> Parser:
    parser = Parser("benchmarks.gpu", __doc__)
    parser.add_argument("--json", type=output_file, help="write the results to a file")
    parser.add_argument("--dry-run", action="store_true", help="tiny arrays, on a CPU too, without verdicts on times")
    return parser


def training(tiny: bool) -> dict[str, Any]:
    """Return the seconds of a training step of GPT-2 small: gradients alone, and with AdamW in the same program."""
    model = gpu_model.tiny() if tiny else gpu_model.gpt2()
    kernel, params = adamw(), drawn(model.shapes, "float32", 0.02)
    tokens, state = model.batch_of(jax.random.key(1)), kernel.init(params)
    gradient = jax.value_and_grad(functools.partial(gpu_model.loss, model))

    # Its result replaces the parameters, as that of the whole step does, so that the gradients are written.
    @functools.partial(jax.jit, donate_argnums=0)
    def without(params: Any, tokens: Any) -> Any:
        return (gradient(params, tokens)[1],)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def whole(params: Any, state: Any, tokens: Any) -> Any:
        _, grads = gradient(params, tokens)
        return kernel.step(params, state, grads, donate=False)

    alone, _ = least(without, jax.tree.map(jnp.copy, params), tokens)
    both, *_ = least(whole, params, state, tokens)
    return {"gradients": alone, "step": both, "optimizer": (both - alone) / both}


def compared(row: Row, tiny: bool, own: Times | None) -> tuple[Times | None, list[str]]:
    """Return the times that a row is compared with, and what to say of other libraries."""
    workload, said, other = (WORKLOADS | GREAT)[row.workload], list[str](), own if row.to == OWN else None
    for peer in [] if tiny else [x for x in (row.to, *row.beside) if x in gpu_peers.PEERS]:
        found = gpu_peers.times(peer, workload, row.dtype)
        if isinstance(found, str):
            said.append(found)
            continue
        other = found if peer == row.to else other
        form = "" if found.is_graph else ", not as a graph"
        said.append(f"{row.name}: {peer} {1e6 * found.device:.0f} us{form}, a call {1e6 * found.call:.0f} us")
    return other, said


def main(argv: Sequence[str] | None = None) -> int:
    arguments, begun = parser().parse_args(argv), time.perf_counter()
    tiny = arguments.dry_run
    if jax.default_backend() != "gpu" and not tiny:
        parser().exit(1, MISSING + "\n")
    errors = {}
    for row in ROWS:  # before any time
        errors[row.name] = error(row)
        if not errors[row.name] < NEAR:
            print(f"{row.name} is WRONG by {errors[row.name]:.1e}")
    copy = bandwidth(tiny)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, a copy in place: {copy / 1e12:.2f} TB/s")
    print("| step | engine | device us | call us | first call s | ratio (most) | share (least) | verdict |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    records, notes, own = [], dict[str, None](), None
    for row in ROWS:
        found = measured(row, errors[row.name], tiny)
        own = Times(found.seconds, found.call) if row.name == OWN else own
        other, said = compared(row, tiny, own)
        notes |= dict.fromkeys(said)
        records.append(judged(row, found, other, copy, tiny))
        print(line(records[-1]), flush=True)
    print(*notes, sep="\n")
    model = training(tiny)
    print(
        f"a training step of GPT-2 small: {1e3 * model['step']:.2f} ms, gradients alone "
        f"{1e3 * model['gradients']:.2f} ms, the optimizer's part {model['optimizer']:.1%}"
    )
    seconds = time.perf_counter() - begun
    passed = sum(x["verdict"] == "pass" for x in records)
    print(f"{passed} of {len(records)} pass, in {seconds:.0f} s")
    if arguments.json:
        device = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "copy": copy, "seconds": seconds}
        versions = {"jaxlib": version("jaxlib"), "command": "python -m benchmarks.gpu"}
        found = {"rows": records, "notes": [*notes], "training": model}
        arguments.json.write_text(json.dumps(device | versions | found, indent=1) + "\n")
    return int(any(x["verdict"].startswith(("WRONG", "FAIL")) for x in records))


def with_empty_caches(run: Callable[[], int]) -> int:
    """Run with caches of its own, so that a first call compiles everything; and with short programs as CUDA graphs.

    XLA makes no graph of less than five kernels. A step in a user's program is among many more.
    """
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_graph_min_graph_size=1"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAXOPT_KERAS_CACHE"] = f"{folder}/kernels"
        jax.config.update("jax_compilation_cache_dir", f"{folder}/programs")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        return run()


if __name__ == "__main__":
    raise SystemExit(with_empty_caches(main))
