"""Timing of steps in interleaved rounds of random order, so that changes of the machine affect all alike.

The memory bandwidth of a shared machine changes within seconds, so milliseconds of different runs cannot be compared,
nor those of different minutes of one run. Each round times every run once, in a new order, and the limit first and
last: a ratio is the median over rounds of a quotient within a round. If the two times of the limit differ by more
than 15 %, the round is unsteady and left out, unless fewer than half of the rounds remain.
"""

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from benchmarks.runs import Run

LIMIT = "limit"
SAMPLE = 5e-3  # seconds: quicker steps are repeated within a sample
UNSTEADY = 0.15
COLD = 2e-3  # seconds of pause between the calls of the cold measurement


class Steps(Protocol):
    def step(self) -> None: ...
    def block(self) -> None: ...


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    q1: float
    q3: float
    samples: int

    @classmethod
    def of(cls, values: Any) -> "Spread":
        q1, median, q3 = np.percentile(values, [25, 50, 75])
        return cls(float(median), float(q1), float(q3), len(values))


class Times(NamedTuple):
    """Seconds for each step, by name and round; NaN if a run was not timed in a round."""

    seconds: dict[str, Any]
    steady: Any  # for each round, whether the machine was steady

    def used(self, *names: str) -> Any:
        """Return the rounds that count for `names`."""
        took_part = np.all([np.isfinite(self.seconds[name]) for name in names], axis=0)
        steady = took_part & self.steady
        return steady if 2 * steady.sum() >= took_part.sum() else took_part

    def spread(self, name: str) -> Spread:
        return Spread.of(self.seconds[name][self.used(name)])

    def ratio(self, name: str, other: str) -> Spread | None:
        """Return the ratio of `name` to `other` within rounds; None without a common round."""
        if name not in self.seconds or other not in self.seconds:
            return None
        rounds = self.used(name, other)
        return Spread.of(self.seconds[name][rounds] / self.seconds[other][rounds]) if rounds.any() else None


def seconds(run: Steps, repeats: int) -> float:
    """Return the seconds for each step."""
    start = time.perf_counter()
    for _ in range(repeats):
        run.step()
    run.block()
    return (time.perf_counter() - start) / repeats


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Switch the garbage collector off, which would otherwise run during any of the steps."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def first_call(start: Callable[[], Run]) -> tuple[Run, float]:
    """Return a run, and the seconds of its first step, with tracing and compilation."""
    run = start()
    return run, seconds(run, 1)


def cold(run: Run, samples: int = 20) -> float:
    """Return the median of single steps, each after a pause, as in a loop with other work between steps."""
    found = []
    for _ in range(samples):
        time.sleep(COLD)
        found.append(seconds(run, 1))
    return float(np.median(found))


def interleaved(
    runs: Mapping[str, Steps],
    budget: float,
    rounds: int,
    tell: Callable[[float], None],
    rng: np.random.Generator,
) -> Times:
    """Time all `runs`, one of which is `LIMIT`, for about `budget` seconds, in at most `rounds` rounds.

    A run that is far slower than the others is timed only in some rounds, at least three. `tell` is called with the
    part that is done.
    """
    with no_collection():
        estimate = {}
        for name, run in runs.items():
            seconds(run, 1)  # the second call still allocates
            estimate[name] = min(seconds(run, 1) for _ in range(2))
        repeats = {name: max(1, round(SAMPLE / t)) for name, t in estimate.items()}
        cost = {name: (repeats[name] + (repeats[name] > 1)) * t for name, t in estimate.items()}
        typical = np.median(list(cost.values()))
        every = {name: max(1, round(c / (4 * typical))) for name, c in cost.items()}
        whole = sum(c / every[name] for name, c in cost.items()) + cost[LIMIT]
        rounds = int(np.clip(budget / whole, 5, rounds))
        every = {name: max(1, min(n, rounds // 3)) for name, n in every.items()}

        def sample(name: str) -> float:
            if repeats[name] > 1:
                seconds(runs[name], 1)  # warms its caches and wakes its threads
            return seconds(runs[name], repeats[name])

        times = {name: np.full(rounds, np.nan) for name in runs}
        steady = np.zeros(rounds, bool)
        others = [name for name in runs if name != LIMIT]
        for i in range(rounds):
            before = sample(LIMIT)
            for name in rng.permutation([name for name in others if i % every[name] == 0]):
                times[name][i] = sample(name)
            after = sample(LIMIT)
            times[LIMIT][i] = (before + after) / 2
            steady[i] = abs(after - before) <= UNSTEADY * min(before, after)
            tell((i + 1) / rounds)
    return Times(times, steady)
