"""Claims of papers, looked up in the results: the two sides of each, and whether it holds."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from benchmarks.training.optimizers import middle_rate
from benchmarks.training.search import Result

Found = Mapping[tuple[str, str], Result]  # by optimizer and task
MODELS = "digits", "mnist1d", "transformer"


class Claim(NamedTuple):
    """`value` of `optimizer` is at most `factor` times `value_of_other` of `other`, on each of `tasks`."""

    text: str
    optimizer: str
    other: str
    factor: float = 1.0
    tasks: tuple[str, ...] = MODELS
    value: Callable[[Result], float | None] = lambda r: r.best
    value_of_other: Callable[[Result], float | None] = lambda r: r.best


def at_default(r: Result) -> float | None:
    """The steps to the target with the default rate."""
    return r.steps[min(range(len(r.rates)), key=lambda i: abs(r.rates[i] - middle_rate(r.optimizer)))]


def least_loss(r: Result) -> float | None:
    return min((x for x in r.final if x is not None), default=None)


def best_rate(r: Result) -> float | None:
    return None if r.best is None else r.rates[r.steps.index(r.best)]


def fewer(optimizer: str, source: str, than: str = "adam", tasks: tuple[str, ...] = MODELS) -> Claim:
    return Claim(f"{optimizer} needs fewer steps than {than} ({source})", optimizer, than, tasks=tasks)


CLAIMS = [
    fewer("muon", "Keller Jordan's report"),
    fewer("normuon", "arXiv:2510.05491", "muon"),
    fewer("adamuon", "arXiv:2507.11005", "muon"),
    fewer("soap", "arXiv:2409.11321"),
    fewer("shampoo", "arXiv:2309.06497"),
    fewer("nadam", "Dozat 2016"),
    fewer("ademamix", "arXiv:2409.03137", "adamw"),
    fewer("mars_adamw", "arXiv:2411.10438", "adamw"),
    fewer("grams", "arXiv:2412.17107", "adamw"),
    fewer("adamw+cautious", "arXiv:2411.16085", "adamw"),
    Claim("prodigy at its default rate, with the cosine that its authors advise, needs at most twice the steps of "
          "adam's best (arXiv:2306.06101)", "prodigy+cosine", "adam", 2.0, value=at_default),
    Claim("schedule_free_adamw ends within 10 % of the loss of a cosine (arXiv:2405.15682)", "schedule_free_adamw",
          "adamw+cosine", 1.1, value=least_loss, value_of_other=least_loss),
    Claim("lion's best rate is at most a third of adamw's (arXiv:2302.06675)", "lion", "adamw", 1 / 3,
          value=best_rate, value_of_other=best_rate),
]  # fmt: skip


def table(found: Found) -> str:
    """Return a row for each claim whose sides are in the results."""
    rows = [["claim", *MODELS, "holds"], ["---"] * (len(MODELS) + 2)]
    for claim in CLAIMS:
        cells, holds = [], []
        for task in claim.tasks:
            own, others = found.get((claim.optimizer, task)), found.get((claim.other, task))
            if own is None or others is None:
                continue
            value, other = claim.value(own), claim.value_of_other(others)
            holds.append(value is not None and (other is None or value <= claim.factor * other * (1 + 1e-6)))
            cells.append(f"{shown(value)} / {shown(other)}")
        if holds:
            cells += [""] * (len(MODELS) - len(cells))
            verdict = "yes" if all(holds) else f"on {sum(holds)} of {len(holds)}" if any(holds) else "no"
            rows.append([claim.text, *cells, verdict])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def shown(x: Any) -> str:
    return "no" if x is None else f"{x:.3g}"
