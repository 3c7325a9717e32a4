"""One optimizer on one task, with all rates at once."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.training.optimizers import OPTIMIZERS, middle_rate
from benchmarks.training.task import Task

EVERY = 5  # steps from one look at the loss to the next


@dataclass(frozen=True)
class Result:
    """The outcome of one optimizer on one task."""

    optimizer: str
    task: str
    rates: list[float]
    steps: list[int | None]  # until the target, for each rate; None: not reached
    final: list[float | None]  # the loss at the end, for each rate; None: not finite

    @property
    def best(self) -> int | None:
        return min((n for n in self.steps if n is not None), default=None)

    @property
    def window(self) -> float:
        """The greatest rate that reaches the target, divided by the least; 0 if none does."""
        reached = [rate for rate, n in zip(self.rates, self.steps, strict=True) if n is not None]
        return max(reached) / min(reached) if reached else 0.0


def rates_of(optimizer: str, count: int) -> list[float]:
    """Return `count` rates, two in each factor of ten, around the default."""
    default = middle_rate(optimizer)
    return [float(default * 10 ** ((i - count // 2) / 2)) for i in range(count)]


def search(optimizer: str, task: Task, count: int, part: float = 1.0) -> Result:
    """Train with `count` rates for `part` of the task's steps."""
    rates = rates_of(optimizer, count)
    looks = max(int(task.steps * part) // EVERY, 1)
    losses = np.asarray(trained(optimizer, task, jnp.asarray(rates, jnp.float32), looks))
    reached = losses <= task.target
    steps = [int(np.argmax(row) + 1) * EVERY if row.any() else None for row in reached]
    return Result(
        optimizer, task.name, rates, steps, [float(f"{x:.6g}") if np.isfinite(x) else None for x in losses[:, -1]]
    )


def trained(optimizer: str, task: Task, rates: Any, looks: int) -> Any:
    """Return the losses at every look, a row for each rate."""
    exact = task.exact or task.loss

    def run(rate: Any) -> Any:
        kernel, params = OPTIMIZERS[optimizer](rate, looks * EVERY), jax.tree.map(jnp.asarray, task.params)

        def step(carried: Any, key: Any) -> Any:
            params, state = carried
            return kernel.minimize(task.loss, params, state, key)[:2], None

        def look(carried: Any, keys: Any) -> Any:
            (params, state), _ = jax.lax.scan(step, carried, keys)
            return (params, state), exact(kernel.averaged(params, state), keys[0])

        keys = jax.random.split(jax.random.key(0), (looks, EVERY))
        return jax.lax.scan(look, (params, kernel.init(params)), keys)[1]

    # `vmap` would do in every step what a rule for matrices does every k steps.
    each = functools.partial(jax.lax.map, run) if matrices(optimizer) else jax.vmap(run)
    return jax.jit(each)(rates)


def matrices(optimizer: str) -> bool:
    """Whether the rule needs whole matrices."""
    return OPTIMIZERS[optimizer](1e-3, EVERY).rule.grain == "matrix"
