"""Comparison of one optimizer with one peer."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from benchmarks.parity.cases import Case, difference, draw, run
from benchmarks.parity.histories import History
from benchmarks.parity.oracle import Oracle
from benchmarks.parity.peer import Absent, Peer
from jaxopt_keras.language.rule import Rule

BAR = 2e-5
BARS = {"Muon": 2e-4}  # the Newton-Schulz iteration amplifies rounding


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
    def is_theirs(self) -> bool:
        """Whether the difference exceeds the bar as the peer's from float64 does, and ours from float64 does not."""
        if self.difference is None or self.ours_to_float64 is None or self.peer_to_float64 is None:
            return False
        return self.ours_to_float64 <= self.bar < min(self.difference, self.peer_to_float64)

    @property
    def passed(self) -> bool:
        return self.difference is None or self.difference <= self.bar or self.is_theirs

    def __str__(self) -> str:
        if self.difference is None:
            return "-"
        return f"{self.difference:.1e}" + (" *" if self.is_theirs else "" if self.passed else " !")


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
            if cell.difference is not None and found <= min(cell.difference, cell.bar):
                continue
            other = replace(cell, difference=found, seed=seed, settings=str(case))
            other = replace(other, **distances_from_float64(ours, theirs, case))
            cell = max(other, cell, key=lambda x: (not x.passed, x.difference or 0.0))
    return cell


def distances_from_float64(ours: History, theirs: History, case: Case) -> dict[str, float | None]:
    """Both sides' differences from the float64 reference, if there is one."""
    try:
        exact = Oracle().run(case)
    except Absent:
        return {"ours_to_float64": None, "peer_to_float64": None}
    sides = {"ours_to_float64": ours, "peer_to_float64": theirs}
    return {side: difference(history, exact, case) for side, history in sides.items()}
