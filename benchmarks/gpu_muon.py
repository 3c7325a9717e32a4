"""Compares Muon's step on one GPU, on the 48 matrices of GPT-2 small, with optax's, torch's, and with bare products.

    python -m benchmarks.gpu_muon [--json FILE] [--dry-run]

A time is that of the device: twenty steps in one program, the least of several runs; torch's is a CUDA graph, if torch
can capture one. The share is that of the rate of products of bfloat16 matrices, 8192 x 8192, measured in the same run;
counted are the products of the iteration alone. `--dry-run` needs no GPU: tiny matrices, without verdicts on times.
"""

import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxopt_keras as jk
from benchmarks.gpu import MISSING, RUNS, STEPS, drawn, least
from benchmarks.workloads import WORKLOADS
from command import Parser, output_file

SIDE = 8192  # of the matrices whose product is the measure
SHARE, OF_OPTAX, OF_TORCH = 0.6, 0.5, 1.0  # the bars: at least this share, at most these parts of others' times
VERDICTS = {True: "pass", False: "FAIL", None: "not measured"}
NEAR = 0.05  # the greatest part of a step that bfloat16 may change
KERNELS = {  # the first has the bars
    "muon": jk.muon(1e-3),
    "muon, gram": jk.muon(1e-3, gram=True),
    "muon, polar express": jk.muon(1e-3, iteration="polar_express_nanogpt"),
    "muon, turbo": jk.muon(1e-3, iteration="turbo_flash", normalization="aol", ns_steps=4),
    "normuon": jk.normuon(1e-3),
    "dion2": jk.dion2(1e-3),
    "muon, float32": jk.muon(1e-3, precision="float32"),
}
Step = Callable[[Any, Any, Any], tuple[Any, Any]]


class Result(NamedTuple):
    """The step of one kernel: a row of the table."""

    name: str
    error: float
    seconds: float
    share: float  # of the rate of bare products, by the products of five plain Newton-Schulz iterations
    of_optax: float
    of_torch: float | None
    verdict: str

    def line(self) -> str:
        of_torch = "-" if self.of_torch is None else f"{self.of_torch:.2f}"
        cells = f"{1e6 * self.seconds:.0f}", f"{self.share:.2f}", f"{self.of_optax:.2f}", of_torch
        return f"| {self.name} | {' | '.join(cells)} | {self.verdict} |"


def operations(shapes: Sequence[tuple[int, ...]], steps: int = 5) -> int:
    """Return the floating-point operations of the products of Newton and Schulz's iteration."""
    return sum(steps * (4 * min(s) ** 2 * max(s) + 2 * min(s) ** 3) for s in shapes)


def seconds(step: Step, params: Any, state: Any, grads: Any) -> float:
    """Return the time of one step of many in one program."""

    def run(params: Any, state: Any, grads: Any) -> Any:
        return jax.lax.fori_loop(0, STEPS, lambda _, now: step(now[0], now[1], grads), (params, state))

    copied = jax.tree.map(jnp.copy, (params, state))  # they are donated
    return least(jax.jit(run, donate_argnums=(0, 1)), *copied, grads)[0] / STEPS


def product_rate(tiny: bool) -> float:
    """Return the floating-point operations in a second of products of bfloat16 matrices."""
    n = 64 if tiny else SIDE
    x = jnp.eye(n, dtype=jnp.bfloat16)
    run = jax.jit(lambda x, y: (jax.lax.fori_loop(0, STEPS, lambda _, x: x @ y, x),), donate_argnums=0)
    return 2 * n**3 * STEPS / least(run, jnp.copy(x), x)[0]


def error(kernel: jk.Kernel, params: Any, grads: Any) -> float:
    """Return the distance of a step from that with products in float32, as a part of the latter."""
    exact = jk.Kernel(kernel.rule.bind({"precision": "float32"}))
    ours, theirs = (k.update(grads, k.init(params), params)[0] for k in (kernel, exact))
    size = lambda tree: float(np.sqrt(sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(tree))))
    return size(jax.tree.map(jnp.subtract, ours, theirs)) / size(theirs)


def of_optax(params: Any, grads: Any) -> float:
    transform = optax.contrib.muon(1e-3)

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = transform.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return seconds(step, params, transform.init(params), grads)


def of_torch(shapes: Sequence[tuple[int, ...]]) -> float | None:
    """Return the time of torch.optim.Muon; None without torch for a GPU."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch  # pyright: ignore[reportMissingImports]  # optional

    if not torch.cuda.is_available():
        return None
    params = [torch.randn(s, device="cuda").requires_grad_() for s in shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    step, graph = torch.optim.Muon(params, lr=1e-3).step, torch.cuda.CUDAGraph()
    for _ in range(3):
        step()
    try:
        with torch.cuda.graph(graph):
            step()
        step = graph.replay
    except RuntimeError as failure:
        print(f"torch's Muon as a loop in Python, without a graph: {str(failure).splitlines()[0]}")
    times = []
    for _ in range(RUNS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / STEPS)
    return min(times)


def judged(found: Result, tiny: bool) -> str:
    """Return the verdict on a row. Only the first has bars for its time."""
    if not found.error < NEAR:
        return "WRONG"
    if tiny or found.name != next(iter(KERNELS)):
        return "not timed" if tiny else "-"
    met = [is_met for _, is_met in bars(found)]
    return "FAIL" if False in met else "pass, no torch" if None in met else "pass"


def bars(found: Result) -> list[tuple[str, bool | None]]:
    """Return each bar for the time of a row, and whether it is met; None: not measured."""
    of_torch = "-" if found.of_torch is None else f"{found.of_torch:.2f}"
    return [
        (f"{found.share:.2f} of the rate of bare products, at least {SHARE}", found.share >= SHARE),
        (f"{found.of_optax:.2f} of the time of optax.contrib.muon, at most {OF_OPTAX}", found.of_optax <= OF_OPTAX),
        (
            f"{of_torch} of the time of torch.optim.Muon, at most {OF_TORCH}",
            None if found.of_torch is None else found.of_torch <= OF_TORCH,
        ),
    ]


def parser() -> Parser:
    parser = Parser("benchmarks.gpu_muon", __doc__)
    parser.add_argument("--json", type=output_file, help="write the results to a file")
    parser.add_argument("--dry-run", action="store_true", help="tiny matrices, on a CPU too, without verdicts on times")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if jax.default_backend() != "gpu" and not arguments.dry_run:
        parser().exit(1, MISSING + "\n")
    workload = WORKLOADS["muon768"]
    shapes = {"a": (16, 48), "b": (16, 48), "c": (32, 16)} if arguments.dry_run else workload.shapes
    params, grads = drawn(shapes, "float32", 0.02), drawn(shapes, "float32", 1.0)
    rate, by_optax = product_rate(arguments.dry_run), of_optax(params, grads)
    by_torch = None if arguments.dry_run else of_torch([*shapes.values()])
    work = operations([*shapes.values()])
    print(f"{workload.about}. {jax.devices()[0].device_kind}, jax {jax.__version__}, optax {optax.__version__}")
    print(f"bfloat16 products: {rate / 1e12:.3g} TFLOP/s; {work / rate * 1e6:.0f} us for those of five iterations")
    print(f"| step | device us | share ({SHARE}) | of optax ({OF_OPTAX}) | of torch ({OF_TORCH}) | verdict |")
    print("| --- | --- | --- | --- | --- | --- |")
    found = []
    for name, kernel in KERNELS.items():
        step = lambda p, s, g, kernel=kernel: kernel.step(p, s, g, donate=False)
        time_of = seconds(step, params, kernel.init(params), grads)
        ratio = time_of / by_torch if by_torch else None
        row = Result(name, error(kernel, params, grads), time_of, work / time_of / rate, time_of / by_optax, ratio, "")
        found.append(row._replace(verdict=judged(row, arguments.dry_run)))
        print(found[-1].line(), flush=True)
    for text, is_met in bars(found[0]):
        print(f"{found[0].name}: {text}: {'not measured' if arguments.dry_run else VERDICTS[is_met]}")
    if arguments.json:
        about = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "product_rate": rate}
        about |= {"command": "python -m benchmarks.gpu_muon", "optax_seconds": by_optax, "torch_seconds": by_torch}
        arguments.json.write_text(json.dumps(about | {"rows": [x._asdict() for x in found]}, indent=1) + "\n")
    return int(any(x.verdict in ("WRONG", "FAIL") for x in found))


if __name__ == "__main__":
    raise SystemExit(main())
