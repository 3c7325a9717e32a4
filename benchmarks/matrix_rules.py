"""Times optimizers with factors of matrices (SOAP, Shampoo) beside HeavyBall's, and tells what the factors cost.

    python -m benchmarks.matrix_rules [--side N ...] [--count N] [--every K] [--seconds S] [--json FILE]

Each rule first has to follow its float64 reference. A time is the mean of a step over whole periods, in which each
factor is decomposed once every K updates; rounds of all are interleaved, and a ratio is the median of those within a
round. The peer needs `pip install torch==2.13.0 heavyball`; without it the library is timed alone.
"""

import functools
import importlib.metadata
import importlib.util
import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_keras as jk
from benchmarks.parity.comparison import compare
from benchmarks.parity.oracle import Oracle
from benchmarks.timing import LIMIT, Times, interleaved
from command import Parser, count, output_file, positive, progress
from jaxopt_keras import rules

ADAMW = LIMIT  # whose time is the unit
CHECKED = {"soap": rules.SOAP, "shampoo": rules.Shampoo}
PEERS = {"SOAP": {"max_precond_dim": 10_000, "merge_dims": False}}


class Ours:
    """Whole periods of donated steps."""

    def __init__(self, kernel: jk.Kernel, params: Any, grads: Any, every: int) -> None:
        self.kernel, self.grads, self.every = kernel, grads, every
        self.params = jax.tree.map(jnp.array, params)
        self.state = kernel.init(self.params)

    def step(self) -> None:
        for _ in range(self.every):
            self.params, self.state = self.kernel.step(self.params, self.state, self.grads)

    def block(self) -> None:
        jax.block_until_ready((self.params, self.state))


class HeavyBall:
    """The same of an optimizer of HeavyBall, with its compiled functions."""

    def __init__(self, name: str, params: Any, grads: Any, every: int) -> None:
        import heavyball  # pyright: ignore[reportMissingImports]  # optional
        import torch  # pyright: ignore[reportMissingImports]  # optional

        self.every = every
        tensors = [torch.nn.Parameter(torch.tensor(np.array(p))) for p in params.values()]
        for tensor, g in zip(tensors, grads.values(), strict=True):
            tensor.grad = torch.tensor(np.array(g))
        options = PEERS[name] | {"precondition_frequency": every}
        self.optimizer = getattr(heavyball, name)(tensors, lr=1e-3, **options)
        self.grads = [(tensor, tensor.grad) for tensor in tensors]

    def step(self) -> None:
        for _ in range(self.every):
            for tensor, grad in self.grads:  # which its step takes away
                tensor.grad = grad
            self.optimizer.step()

    def block(self) -> None:
        pass  # torch computes at once on a CPU


def runs(params: Any, grads: Any, every: int) -> dict[str, Any]:
    made = functools.partial(Ours, params=params, grads=grads, every=every)
    found: dict[str, Any] = {
        ADAMW: made(jk.adamw(1e-3)),
        "soap": made(jk.soap(1e-3, precondition_frequency=every)),
        "soap, bases never renewed": made(jk.soap(1e-3, precondition_frequency=10**9)),
        "shampoo": made(jk.shampoo(1e-3, precondition_frequency=every)),
        "shampoo, roots never renewed": made(jk.shampoo(1e-3, precondition_frequency=10**9)),
    }
    if importlib.util.find_spec("heavyball"):
        found |= {f"HeavyBall {name}": HeavyBall(name, params, grads, every) for name in PEERS}
    return found


def wrong() -> list[str]:
    """Return a line for each rule that does not follow its float64 reference."""
    cells = [compare(rule, "float64", Oracle(), [0], 25) for rule in CHECKED.values()]
    return [f"{cell.optimizer}: {cell} from float64, allowed {cell.bar}" for cell in cells if not cell.passed]


def rows(side: int, times: Times, every: int) -> list[dict[str, Any]]:
    """Return the times of a step in milliseconds, and as multiples of AdamW's and of HeavyBall's."""
    found = []
    for name in times.seconds:
        spread, unit = times.spread(name), times.ratio(name, ADAMW)
        peer = times.ratio(name, "HeavyBall SOAP") if name == "soap" else None
        row = {"side": side, "step": "adamw" if name == ADAMW else name}
        row |= {key: 1e3 * getattr(spread, key) / every for key in ("q1", "median", "q3")}
        found.append(row | {"of_adamw": unit and unit.median, "of_heavyball": peer and peer.median})
    return found


def line(row: dict[str, Any]) -> str:
    ratios = ("-" if x is None else f"{x:.2f}" for x in (row["of_adamw"], row["of_heavyball"]))
    times = f"{row['median']:.2f} ({row['q1']:.2f} to {row['q3']:.2f})"
    return f"| {row['side']} | {row['step']} | {times} | {' | '.join(ratios)} |"


def parser() -> Parser:
    parser = Parser("benchmarks.matrix_rules", __doc__)
    add = parser.add_argument
    add("--side", nargs="+", type=count, default=[128, 256, 512], metavar="N", help="sides of the matrices")
    add("--count", type=count, default=4, metavar="N", help="matrices of each side (default: 4)")
    add("--every", type=count, default=10, metavar="K", help="updates from one decomposition to the next (default: 10)")
    add("--seconds", type=positive, default=20.0, metavar="S", help="time for each side (default: 20)")
    add("--json", type=output_file, metavar="FILE", help="write the numbers to a file")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = parser().parse_args(arguments)
    for each in (failures := wrong()):
        print(each)
    if failures:
        return 1
    print("| side | step | ms: median (quartiles) | of AdamW | of HeavyBall |\n| --- | --- | --- | --- | --- |")
    found, rng = [], np.random.default_rng(0)
    for side in chosen.side:
        draw = lambda side=side: {
            str(i): jnp.asarray(rng.normal(size=(side, side)), jnp.float32) for i in range(chosen.count)
        }
        with progress(f"{side} x {side}", 1) as tell:
            times = interleaved(runs(draw(), draw(), chosen.every), chosen.seconds, 100, lambda x: tell(x, ""), rng)
        found += rows(side, times, chosen.every)
        print("\n".join(line(row) for row in found if row["side"] == side), flush=True)
    if chosen.json:
        about = {
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "settings": vars(chosen) | {"json": ""},
        }
        if importlib.util.find_spec("heavyball"):
            about |= {name: importlib.metadata.version(name) for name in ("heavyball", "torch")}
        chosen.json.write_text(json.dumps(about | {"rows": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
