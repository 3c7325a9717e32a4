"""Why a peer is not there."""

from collections.abc import Callable
from typing import Any

from jaxopt_keras.parity.peer import Absent


def absent(load: Callable[[], Any], package: str) -> str | None:
    """What `load` says is missing, and what to install; None where nothing is."""
    try:
        load()
    except Absent as reason:
        return f"{reason}: pip install {package}"
    return None
