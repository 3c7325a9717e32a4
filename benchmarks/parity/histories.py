"""Histories: the parameters after each step, and the difference of two histories."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
History = list[Arrays]  # the parameters after each step


def to_numpy(params: Mapping[str, Any]) -> Arrays:
    return {name: np.array(p) for name, p in params.items()}


def distance(history: History, name: str, start: NDArray[Any]) -> float:
    """The greatest distance of an element of one parameter from its start."""
    return farthest(params[name] - start for params in history)


def farthest(differences: Iterable[NDArray[Any]]) -> float:
    """The greatest absolute value, or NaN if there is one (Python's `max` would ignore it)."""
    return float(np.max([np.max(np.abs(x), initial=0.0) for x in differences], initial=0.0))


def relative(ours: History, theirs: History, name: str, start: NDArray[Any]) -> float:
    """The relative difference of one parameter: infinite if a value is not finite, absolute if it never moves."""
    difference = farthest(a[name] - b[name] for a, b in zip(ours, theirs, strict=True))
    travelled = distance(theirs, name, start)
    if not np.isfinite(difference) or not np.isfinite(travelled):
        return float("inf")
    return difference / travelled if travelled else difference
