"""Renames checkpoint entries whose paths hold automatic counters: `sequential_1/dense_2/kernel`.

Keras counts layers per process, so a model that is built twice has other counters the second time.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from jaxopt_keras.checkpoint.names import by_parameter


def renamed(flat: Mapping[str, Any], paths: Iterable[str]) -> Mapping[str, Any]:
    """`flat` with the paths of the current variables, if the paths differ in counters only; else `flat` itself.

    Renaming needs two conditions: no saved path is a current one, and without counters the saved and the current paths
    are the same. Equal paths without counters are matched in the order of their counters, which is the order in which
    the variables were made.
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
    """Each path, by its name without counters and its rank among the paths with that name."""
    same: dict[str, list[str]] = {}
    for path in sorted(paths, key=_counters):
        same.setdefault(re.sub(COUNTER, "", path), []).append(path)
    return {(stem, i): path for stem, found in same.items() for i, path in enumerate(found)}


COUNTER = r"_\d+(?=/|$)"


def _counters(path: str) -> list[int]:
    """The counters of a path, as Keras numbers layers: none, 1, 2, ..."""
    return [int((re.search(COUNTER, part) or ["_0"])[0][1:]) for part in path.split("/")]
