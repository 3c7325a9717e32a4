"""A model that is made anew in one process has other numbers in its names: `sequential_1/dense_2/kernel`."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from jaxopt_keras.checkpoint.names import by_parameter


def renamed(flat: Mapping[str, Any], paths: Iterable[str]) -> Mapping[str, Any]:
    """`flat` under the names that its variables have now, where they differ in counters only; else as it is.

    That is where no variable is found by its name, but each has one place: among names that are the same without their
    counters, the order of the counters is the order in which the variables were made.
    """
    saved, now = _ranked(by_parameter(dict(flat))), _ranked(paths)
    if saved.keys() != now.keys() or set(saved.values()) & set(now.values()):
        return flat
    new = {path: now[place] for place, path in saved.items()}

    def name(old: str) -> str:
        path, _, slot = old.removeprefix("slots/").rpartition("/")
        return f"slots/{new[path]}/{slot}" if old.startswith("slots/") else old

    return {name(old): x for old, x in flat.items()}


def _ranked(paths: Iterable[str]) -> dict[tuple[str, int], str]:
    """Each path by its name without counters, and its number among those of that name."""
    alike: dict[str, list[str]] = {}
    for path in sorted(paths, key=_counters):
        alike.setdefault(re.sub(COUNTER, "", path), []).append(path)
    return {(stem, i): path for stem, found in alike.items() for i, path in enumerate(found)}


COUNTER = r"_\d+(?=/|$)"


def _counters(path: str) -> list[int]:
    """Those that Keras counts by: none, 1, 2, ..."""
    return [int((re.search(COUNTER, part) or ["_0"])[0][1:]) for part in path.split("/")]
