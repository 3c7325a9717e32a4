"""Measures one workload with one optimizer: results, time and memory, as a table."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import limits, memory, ours, problem
from benchmarks.agreement import Agreement, agreements, disagreement, samples
from benchmarks.problem import Problem
from benchmarks.records import Row, Table
from benchmarks.runs import Implementation, Wish, short
from benchmarks.timing import LIMIT, Spread, Times, cold, first_call, interleaved

AGAIN = "again"
REFERENCES = ("optax", "optax, dense")
QUICK = 2e-3  # seconds: a quicker step is also measured cold


class Effort(NamedTuple):
    """Extent of a measurement."""

    scale: float = 1.0
    seconds: float = 20.0  # for the timing of each table
    rounds: int = 200
    memory: bool = True
    room: int = 8 << 30  # bytes that the runs of one group may use


Tell = Callable[[str, float], None]  # called with the present action, and the part of it that is done


def measure(wish: Wish, optimizer: str, found: list[Implementation], effort: Effort, tell: Tell) -> Table:
    """Measure the implementations `found`, and return a table with a row for each."""
    workload = wish.workload
    checks = agreements(
        found, problem.to_compare(workload, optimizer, wish.dtype), lambda name: tell(f"checks {name}", 0)
    )
    rows = {each.name: row_of(each, checks.get(each.name)) for each in found}
    timed = [each for each in found if rows[each.name].note is None]

    given = problem.to_time(workload, optimizer, wish.dtype)
    slots = limits.slots_of(given, ours.state_bytes(given, wish.variant))
    limit = limits.limit(given, slots, wish.threads)
    reference = next((each for each in timed if each.name in REFERENCES), timed[0] if timed else None)
    groups = grouped(timed, reference, given, effort.room)
    shared: list[Times] = []
    for group in groups:
        share = effort._replace(seconds=effort.seconds * len(group) / sum(map(len, groups)))
        shared.append(time_group(group, given, limit, share, rows, tell))
    for each in timed:
        if rows[each.name].note is None:
            complete(rows[each.name], each, shared, given, limit, wish)
    if effort.memory:
        for i, each in enumerate(timed):
            if rows[each.name].note is None:
                tell(f"weighs {each.name}", i / len(timed))
                weight = memory.measured(each, wish, optimizer, effort.scale)
                if weight is not None:
                    rows[each.name].held, rows[each.name].transient = weight
    steady = np.concatenate([times.steady for times in shared]) if shared else np.ones(1, bool)
    limit_times = np.concatenate([times.seconds[LIMIT] for times in shared]) if shared else np.full(1, np.nan)
    return Table(
        workload=workload.name, about=workload.about, optimizer=optimizer, dtype=wish.dtype, scale=effort.scale,
        arrays=len(workload.shapes), parameters=workload.parameters, touched=workload.touched,
        limit=limit.what, limit_ms=scaled(Spread.of(limit_times), 1e3), limit_bytes=limit.bytes,
        unsteady=float(1 - steady.mean()), reference=reference and reference.name,
        again=reference and first(times.ratio(AGAIN, reference.name) for times in shared), rows=list(rows.values()),
    )  # fmt: skip


def row_of(implementation: Implementation, check: Agreement | None) -> Row:
    row = Row(implementation.name, implementation.library, implementation.variant, implementation.storage)
    row.note = implementation.refused or (check and check.reason)
    if check:
        row.error, row.bar = check.error, check.bar
    return row


def grouped(
    timed: list[Implementation], reference: Implementation | None, given: Problem, room: int
) -> list[list[Implementation]]:
    """Group the implementations that are timed together, as memory allows.

    Each group has our first implementation and the reference. The reference is timed twice, once as `AGAIN`.
    """
    if reference is None:
        return []
    again = replace(reference, name=AGAIN)
    always = [each for i, each in enumerate(timed) if i == 0 or each is reference]
    rest = [again, *(each for each in timed if each not in always)]
    unit = sum(p.nbytes for p in given.params.values())
    base = unit * (sum(each.copies for each in always) + 6)  # with the limit, and the gradients on host and device
    groups, used = [[*always]], base
    for each in rest:
        if used + unit * each.copies > room and len(groups[-1]) > len(always):
            groups.append([*always])
            used = base
        groups[-1].append(each)
        used += unit * each.copies
    return groups


def time_group(
    group: list[Implementation],
    given: Problem,
    limit: limits.Limit,
    effort: Effort,
    rows: dict[str, Row],
    tell: Tell,
) -> Times:
    runs: dict[str, Any] = {LIMIT: limit}
    # JAX's flags are attributes that are made at run time.
    cached = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    start, ours_now = samples(given, given.params), None
    for i, each in enumerate(group):
        tell(f"starts {each.name}", i / len(group))
        row = rows.get(each.name)  # none for `AGAIN`
        try:
            run, seconds = first_call(functools.partial(each.start, given))
            found = samples(given, run.params())
        except Exception as raised:  # such as out of memory: fails the row, not the whole benchmark
            if row:
                row.note = f"fails: {short(raised)}"
            continue
        ours_now = ours_now or found
        if row and each.variant == group[0].variant and given.dtype == "float32":
            row.note = disagreement(each, found, ours_now, start)
        if row and row.note:
            continue
        runs[each.name] = run
        if row and row.first_call_s is None and not cached:  # with a cache it might compile nothing
            row.first_call_s = seconds
    times = interleaved(runs, effort.seconds, effort.rounds, lambda part: tell("times", part), np.random.default_rng(0))
    for name, row in rows.items():
        if name in runs and row.cold_ms is None and times.spread(name).median < QUICK:
            row.cold_ms = 1e3 * cold(runs[name])
    return times


def complete(
    row: Row, implementation: Implementation, shared: list[Times], given: Problem, limit: limits.Limit, wish: Wish
) -> None:
    """Fill in the numbers that follow from the times."""
    times = next(times for times in shared if row.name in times.seconds)
    taken = times.spread(row.name)
    row.ms = scaled(taken, 1e3)
    row.ns_per_parameter = taken.median / wish.workload.touched * 1e9
    quotient = times.ratio(LIMIT, row.name)
    if limit.bytes is not None:
        row.bytes = least_bytes(implementation, given, limit, wish)
        row.gb_per_s = row.bytes / taken.median / 1e9
        quotient = quotient and scaled(quotient, row.bytes / limit.bytes)
    row.share = quotient
    for other in sorted({name for times in shared for name in times.seconds} - {LIMIT, AGAIN, row.name}):
        if ratio := first(times.ratio(row.name, other) for times in shared):
            row.ratios[other] = ratio


def least_bytes(implementation: Implementation, given: Problem, limit: limits.Limit, wish: Wish) -> int:
    """Return the bytes that the step has to move: fewer than the limit's if its slots are smaller."""
    assert limit.bytes is not None
    if implementation.storage == "float32":
        return limit.bytes
    wide = ours.state_bytes(given, wish.variant)
    narrow = ours.state_bytes(given, wish.variant, state_dtype=implementation.storage)
    return limit.bytes - 2 * (wide - narrow)  # read and written


def first(found: Iterable[Spread | None]) -> Spread | None:
    return next((x for x in found if x is not None), None)


def scaled(x: Spread, factor: float) -> Spread:
    return Spread(x.median * factor, x.q1 * factor, x.q3 * factor, x.samples)
