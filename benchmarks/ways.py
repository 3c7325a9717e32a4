"""The implementations of all libraries."""

from collections.abc import Iterable

from benchmarks import ours
from benchmarks.peers import PEERS
from benchmarks.problem import Problem
from benchmarks.runs import Implementation, Run, Wish


def candidates(wish: Wish, libraries: Iterable[str]) -> list[Implementation]:
    """Return the implementations of the selected libraries; those that cannot run have the reason."""
    found = []
    for name in libraries:
        if name == ours.NAME:
            found += ours.implementations(wish)
            continue
        reason = PEERS[name].available(wish.platform)
        if reason:
            found.append(Implementation(name, name, no_start, refused=reason))
        else:
            found += PEERS[name].implementations(wish)
    return found


def no_start(problem: Problem) -> Run:
    raise NotImplementedError
