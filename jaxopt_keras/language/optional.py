"""Optional libraries, which are imported when they are needed."""

import importlib
from typing import Any


def optional(module: str, hint: str) -> Any:
    """Import a module of an optional library.

    Raises:
        ImportError: if it is not installed; `hint` says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(hint) from error
