"""The reason why a library cannot be used."""

from collections.abc import Callable
from typing import Any

from benchmarks.parity.peer import Absent


def absent(load: Callable[[], Any], package: str) -> str | None:
    """Return the package that `load` lacks, and the command that installs it; None if nothing is missing."""
    try:
        load()
    except Absent as reason:
        return f"{reason}: pip install {package}"
    return None
