"""What the two faces cost beside optax, jitted and donated, on many small arrays.

    python -m benchmarks --arrays 100 --size 64 --rounds 300 --json results.json

Every implementation makes the same AdamW step on the same arrays. They are first compared after ten steps, then timed
in rounds, in a new order each; a ratio is the median over rounds of time / optax's time in the same round. optax is
made and timed twice, before and after ours, and its time is the mean of both: where the memory lies makes some per cent
of difference, which its two rows show.
"""

import argparse
import functools
import gc
import json
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxopt_keras as jk

RATE, DECAY = 1e-3, 4e-3


def optax_step(arrays: dict[str, jax.Array], grads: dict[str, jax.Array]) -> Callable[[], Any]:
    """optax, as a user would: update and apply in one jitted, donated function, in the order that copies nothing."""
    tx = optax.adamw(RATE, eps=1e-7, weight_decay=DECAY)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.copy, arrays)
    carried = [params, tx.init(params)]

    def run() -> Any:
        carried[:] = step(carried[0], carried[1], grads)
        return jax.block_until_ready(carried[0])

    return run


def pure_step(arrays: dict[str, jax.Array], grads: dict[str, jax.Array]) -> Callable[[], Any]:
    """`Kernel.step`."""
    kernel = jk.adamw(RATE, weight_decay=DECAY, variant="optax")
    params = jax.tree.map(jnp.copy, arrays)
    carried = [params, kernel.init(params)]

    def run() -> Any:
        carried[:] = kernel.step(carried[0], carried[1], grads)
        return jax.block_until_ready(carried[0])

    return run


def stateful_step(arrays: dict[str, jax.Array], grads: dict[str, jax.Array]) -> Callable[[], Any]:
    """`Optimizer.apply_gradients`."""
    optimizer = jk.AdamW(RATE, weight_decay=DECAY, variant="optax")
    variables = [jk.Variable(x, name=name) for name, x in arrays.items()]
    listed = list(grads.values())

    def run() -> Any:
        optimizer.apply_gradients(zip(listed, variables, strict=True))
        return jax.block_until_ready({v.path: v._value for v in variables})

    return run


def measure(count: int, size: int, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds, and the ratio to optax with its quartiles, by implementation."""
    rng = np.random.default_rng(0)
    arrays = {f"w{i:04d}": jnp.asarray(rng.normal(size=(size, size)), jnp.float32) for i in range(count)}
    grads = {name: jnp.asarray(rng.normal(size=x.shape), jnp.float32) for name, x in arrays.items()}
    makers = {"optax": optax_step, "step": pure_step, "apply_gradients": stateful_step, "optax again": optax_step}
    runs = {name: make(arrays, grads) for name, make in makers.items()}

    results = {name: [run() for _ in range(10)][-1] for name, run in runs.items()}
    for name, params in results.items():
        for key in arrays:
            np.testing.assert_allclose(params[key], results["optax"][key], rtol=1e-5, atol=1e-6, err_msg=name)

    times: dict[str, list[float]] = {name: [] for name in runs}
    gc.collect()
    gc.disable()  # or one of them would pay for the garbage of all
    for _ in range(rounds):
        for name in rng.permutation(list(runs)):  # no one always follows the same one
            start = time.perf_counter()
            runs[name]()
            times[name].append(time.perf_counter() - start)
    table = {}
    for name, seconds in times.items():
        ratios = np.array(seconds) / np.mean([times["optax"], times["optax again"]], axis=0)
        low, median, high = np.percentile(ratios, [25, 50, 75])
        table[name] = {
            "ms": float(np.median(seconds) * 1e3), "ratio": float(median), "q1": float(low), "q3": float(high),
        }  # fmt: skip
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--arrays", type=int, default=100, help="how many arrays (default: 100)")
    parser.add_argument("--size", type=int, default=64, help="side of each square array (default: 64)")
    parser.add_argument("--rounds", type=int, default=300, help="interleaved rounds (default: 300)")
    parser.add_argument("--json", metavar="FILE", help="also write the results here")
    args = parser.parse_args()
    device = jax.devices()[0]
    setting = {
        "device": f"{device.platform} {device.device_kind}",
        "machine": platform.processor() or platform.machine(),
        "jax": jax.__version__,
        "optax": optax.__version__,
        "arrays": args.arrays,
        "size": args.size,
        "rounds": args.rounds,
        "date": time.strftime("%Y-%m-%d"),
    }
    print("AdamW, " + ", ".join(f"{k} {v}" for k, v in setting.items()))
    table = measure(args.arrays, args.size, args.rounds)
    print(f"{'':>16}  {'ms':>8}  {'ratio to optax':>14}  {'quartiles':>13}")
    for name, row in table.items():
        print(f"{name:>16}  {row['ms']:8.3f}  {row['ratio']:14.2f}  {row['q1']:6.2f}-{row['q3']:.2f}")
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"setting": setting, "results": table}, file, indent=2)


if __name__ == "__main__":
    main()
