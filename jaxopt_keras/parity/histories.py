"""Parameters after each step, and how far two runs of them are apart."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
History = list[Arrays]  # the parameters after each step


def to_numpy(params: Mapping[str, Any]) -> Arrays:
    return {name: np.array(p) for name, p in params.items()}


def distance(history: History, name: str, start: NDArray[Any]) -> float:
    """How far the elements of one parameter get from their start."""
    return farthest(params[name] - start for params in history)


def farthest(differences: Iterable[NDArray[Any]]) -> float:
    """The greatest absolute value; NaN if there is one, which Python's max would pass over."""
    return float(np.max([np.max(np.abs(x), initial=0.0) for x in differences], initial=0.0))


def relative(ours: History, theirs: History, name: str, start: NDArray[Any]) -> float:
    """The difference of one parameter: infinite if something is not finite, absolute if it never moves."""
    apart = farthest(a[name] - b[name] for a, b in zip(ours, theirs, strict=True))
    travelled = distance(theirs, name, start)
    if not np.isfinite(apart) or not np.isfinite(travelled):
        return float("inf")
    return apart / travelled if travelled else apart
