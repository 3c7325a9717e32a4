"""Comparison of one optimizer with one peer."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from benchmarks.parity.cases import Case, difference, draw, run
from benchmarks.parity.histories import History
from benchmarks.parity.oracle import Oracle
from benchmarks.parity.peer import Absent, Peer
from jaxopt_keras.language.rule import Rule

BAR = 2e-5
BARS = {
    "Muon": 2e-4,  # the Newton-Schulz iteration amplifies rounding
    "Fromage": 5e-5,  # optax's own distance to float64 is 2.6e-5, since it rounds 1 / sqrt(1 + lr²) - 1; ours is 7e-7
}


@dataclass(frozen=True)
class Cell:
    """The comparison of one optimizer with one peer, for the worst seed."""

    optimizer: str
    peer: str
    bar: float
    difference: float | None = None  # None: not compared
    reason: str | None = None  # why it is not compared
    seed: int | None = None
    settings: str | None = None
    ours_to_float64: float | None = None  # shows which side's rounding the difference is
    peer_to_float64: float | None = None

    @property
    def passed(self) -> bool:
        return self.difference is None or self.difference <= self.bar

    def __str__(self) -> str:
        if self.difference is None:
            return "-"
        return f"{self.difference:.1e}" + ("" if self.passed else " !")


def compare(optimizer: type[Rule], name: str, peer: Peer | Absent, seeds: Iterable[int], steps: int) -> Cell:
    """Compares for every seed, and returns the worst result."""
    cell = Cell(optimizer.__name__, name, BARS.get(optimizer.__name__, BAR))
    try:
        if isinstance(peer, Absent):
            raise peer
        terms = peer.terms(optimizer)
    except Absent as absent:
        return replace(cell, reason=str(absent))
    for seed in seeds:
        for each in terms:
            case = draw(optimizer, each, seed, steps)
            ours, theirs = run(case), peer.run(case)
            found = difference(ours, theirs, case)
            if cell.difference is None or found > cell.difference:
                cell = replace(cell, difference=found, seed=seed, settings=str(case))
                cell = replace(cell, **distances_from_float64(ours, theirs, case))
    return cell


def distances_from_float64(ours: History, theirs: History, case: Case) -> dict[str, float | None]:
    """Both sides' differences from the float64 reference, if there is one."""
    try:
        exact = Oracle().run(case)
    except Absent:
        return {"ours_to_float64": None, "peer_to_float64": None}
    sides = {"ours_to_float64": ours, "peer_to_float64": theirs}
    return {side: difference(history, exact, case) for side, history in sides.items()}
