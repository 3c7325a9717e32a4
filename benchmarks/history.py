"""Cost of `jk.history`: the time of a step of AdamW with measures divided by that without, in interleaved rounds.

python -m benchmarks.history [--engine xla] [--seconds 15]
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_keras as jk
from benchmarks.timing import LIMIT, interleaved
from command import Parser, positive, progress

TREES = {
    "9.4 M parameters in 18 arrays": {f"w{i}": (1024, 1024) for i in range(9)} | {f"b{i}": (1024,) for i in range(9)},
    "41 k parameters in 10 arrays": {f"w{i}": (64, 64) for i in range(10)},
}
GROUPS = {"first": "[0-4]$", "last": "[5-9]$"}


class Loop:
    """A jitted step `(params, state, grads) -> (params, state, measures)`; keeps the measures, as a history does."""

    def __init__(self, kernel: jk.Kernel, params: Any, grads: Any, step: Callable[..., Any]) -> None:
        self.jitted = jax.jit(step, donate_argnums=(0, 1))
        self.carried = jax.tree.map(jnp.copy, params), kernel.init(params)
        self.grads, self.seen = grads, []

    def step(self) -> None:
        *self.carried, seen = self.jitted(*self.carried, self.grads)
        self.seen.append(seen)

    def block(self) -> None:
        jax.block_until_ready(self.carried)
        self.seen.clear()


def steps(kernel: jk.Kernel) -> dict[str, Callable[..., Any]]:
    def plain(params: Any, state: Any, grads: Any) -> Any:
        return *kernel.step(params, state, grads), {}

    def measured(**settings: Any) -> Callable[..., Any]:
        return lambda *trees: jk.history.measured_step(kernel, *trees, **settings)

    def separate(params: Any, state: Any, grads: Any) -> Any:
        new, state = kernel.step(params, state, grads)
        return new, state, jk.history.measure(params, new, grads)

    return {
        LIMIT: plain,
        "the same again": plain,
        "measured_step": measured(),
        "measured_step, two groups": measured(groups=GROUPS),
        "measured_step, norms=False": measured(norms=False),
        "step and measure": separate,
    }


def parser() -> Parser:
    parser = Parser("benchmarks.history", __doc__)
    parser.add_argument("--engine", default="auto", choices=("auto", "xla", "native"), help="of the kernel")
    parser.add_argument("--seconds", type=positive, default=15.0, help="for each tree (default: 15)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    kernel, rng = jk.adamw(1e-3, engine=arguments.engine), np.random.default_rng(0)
    for title, shapes in TREES.items():
        params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
        grads = jax.tree.map(lambda p: 0.1 * p, params)
        runs = {name: Loop(kernel, params, grads, step) for name, step in steps(kernel).items()}
        for run in runs.values():
            run.step()
            run.block()
        with progress(title) as tell:
            times = interleaved(runs, arguments.seconds, 400, tell, rng)
        print(f"\n{title}, engine {arguments.engine}, by the step alone: median (quartiles)")
        for name in runs:
            ratio = times.ratio(name, LIMIT)
            if name != LIMIT and ratio is not None:
                spread = f"{ratio.median:.2f} ({ratio.q1:.2f}-{ratio.q3:.2f})"
                print(f"  {name:28s}{1e3 * times.spread(name).median:8.3f} ms  {spread}")


if __name__ == "__main__":
    main()
