"""Checks the results of an implementation before it is timed; one that fails is not timed.

Each makes a few steps on a miniature of the workload, with fresh gradients and another rate at each step, and is
compared with the float64 reference of its own formula in `tests/oracles`. Its error is the greatest difference of a
parameter, less the rounding of the parameter itself, divided by the greatest distance that an element of the array
travels. For quantized state, and for train steps, in which rounding affects the gradients of tiny elements, it is the
norm of the difference divided by the norm of the distance.
"""

from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import models
from benchmarks.parity.oracle import Oracle
from benchmarks.parity.peer import Absent
from benchmarks.problem import DTYPES, Problem, Rows
from benchmarks.runs import Implementation, short

# Peers compute 1 - 0.999 in float32, which is wrong by 6e-5 of itself; an epsilon in the wrong place makes 1e-2.
BARS = {"float32": 2e-4, "bfloat16": 0.02, "float16": 0.02, "float8": 0.2, "int8": 0.2, "int4": 0.8}
MUON_BAR = 5e-3  # its iteration amplifies rounding


class Agreement(NamedTuple):
    """The distance from float64, and the greatest one allowed."""

    error: float | None
    bar: float
    reason: str | None = None  # why it is refused

    @property
    def passed(self) -> bool:
        return self.reason is None


def reference(problem: Problem, variant: str, sparse: str) -> dict[str, Any]:
    """Return the parameters after all steps, in float64.

    Raises:
        Absent: if there is no reference of the rule.
    """
    oracle = Oracle().optimizer(problem.case(variant))
    for given in problem.given:
        if problem.workload.kind == "training":
            oracle.step(models.gradient(oracle.params, given))
        elif sparse == "lazy":
            lazy_step(oracle, Oracle().module(problem.rule), problem, variant, given)
        else:
            oracle.step({name: dense(g, problem.params[name].shape) for name, g in given.items()})
    return oracle.params


def dense(g: Any, shape: tuple[int, ...]) -> Any:
    if not isinstance(g, Rows):
        return g
    whole = np.zeros(shape)
    np.add.at(whole, g.indices, g.values.astype(np.float64))
    return whole


def lazy_step(loop: Any, oracle: ModuleType, problem: Problem, variant: str, given: dict[str, Rows]) -> None:
    """Update the touched rows and their slots only."""
    rate = problem.rate(loop.updates) if callable(problem.rate) else problem.rate
    for name, g in given.items():
        rows = np.unique(g.indices)
        p, slots = loop.params[name], loop.slots[name]
        touched = dense(g, p.shape)[rows]
        p[rows], moved = oracle.update(
            touched, p[rows], {k: s[rows] for k, s in slots.items()}, loop.updates + 1, rate,
            wd=problem.options["weight_decay"], variant=variant, path=name, **problem.hyper,
        )  # fmt: skip
        for k, s in moved.items():
            slots[k][rows] = s
    loop.updates += 1


def error(found: dict[str, Any], exact: dict[str, Any], problem: Problem, by_norm: bool) -> float:
    """Return the greatest error over all arrays."""
    worst, ulp = 0.0, float(jax.numpy.finfo(DTYPES[problem.dtype]).eps)
    for name, start in problem.params.items():
        start, end = np.asarray(start, np.float64), exact[name]
        apart, travelled = np.abs(np.asarray(found[name], np.float64) - end), np.abs(end - start)
        if not np.all(np.isfinite(apart)):
            return float("inf")
        apart = np.maximum(apart - len(problem.given) * ulp * np.maximum(np.abs(start), np.abs(end)), 0)
        size = np.linalg.norm if by_norm else np.max
        worst = max(worst, float(size(apart.ravel()) / max(float(size(travelled.ravel())), 1e-30)))
    return worst


def agreement(implementation: Implementation, problem: Problem, exact: dict[str, Any]) -> Agreement:
    """Compare one implementation with `exact`, the `reference` of its formula."""
    by_norm = implementation.storage != "float32" or problem.workload.kind == "training"
    bar = BARS[implementation.storage]
    if problem.optimizer == "muon":
        bar = max(bar, MUON_BAR)
    if problem.workload.kind == "training":
        bar = max(bar, 1e-3)
    try:
        run = implementation.start(problem)
        for _ in problem.given:
            run.step()
        run.block()
        found = error(run.params(), exact, problem, by_norm)
    except Exception as raised:  # an error of a library fails its row, not the whole benchmark
        return Agreement(None, bar, f"fails: {short(raised)}")
    if found > bar:
        return Agreement(found, bar, f"differs from float64 by {found:.1e} of the distance travelled (bar {bar:.0e})")
    return Agreement(found, bar)


def samples(problem: Problem, params: dict[str, Any]) -> dict[str, Any]:
    """Return up to 4096 elements of the first, the largest and the last array (of touched rows, if sparse)."""
    names = list(problem.params)
    chosen = dict.fromkeys([names[0], max(names, key=lambda name: problem.params[name].size), names[-1]])
    found = {}
    for name in chosen:
        p = np.asarray(params[name])
        rows = problem.given[0][name].indices[:64] if problem.workload.kind == "rows" else slice(None)
        found[name] = p[rows].ravel()[:: max(1, p[rows].size // 4096)].astype(np.float64)
    return found


def disagreement(
    implementation: Implementation, found: dict[str, Any], ours: dict[str, Any], start: dict[str, Any]
) -> str | None:
    """Return how a first step at full size differs from ours, by the `samples` of both; None if it does not."""
    for name, p in found.items():
        apart, travelled = np.linalg.norm(p - ours[name]), np.linalg.norm(ours[name] - start[name])
        allowed = 1e-3 if implementation.storage == "float32" else BARS[implementation.storage]
        rounding = 2**-23 * np.linalg.norm(start[name])
        if not apart <= allowed * travelled + rounding:
            return f"differs at full size: `{name}` by {apart / max(travelled, 1e-30):.1e} of the distance travelled"
    return None


def agreements(implementations: list[Implementation], problem: Problem, tell: Any) -> dict[str, Agreement]:
    """Return the agreement of each implementation, by name; `tell(text)` is called before each."""
    exact: dict[tuple[str, str], Any] = {}
    found = {}
    for each in implementations:
        if each.refused:
            continue
        tell(each.name)
        key = each.variant, each.sparse
        try:
            if key not in exact:
                exact[key] = reference(problem, *key)
        except Absent as absent:
            raise SystemExit(f"Nothing is timed that is not checked, and {absent}.") from None
        found[each.name] = agreement(each, problem, exact[key])
    return found
