"""Checks of the arguments of the public functions: wrong types are told with the order of the arguments."""

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxopt_keras.checkpoint.names import FORMAT
from jaxopt_keras.engine.state import State
from jaxopt_keras.pure.kernel import Kernel
from jaxopt_keras.stateful.optimizer import Optimizer


def check_arguments(function: Callable[..., Any], **given: Any) -> None:
    """Checks the arguments in `given`, each by its name.

    Raises:
        TypeError: if one has a wrong type. The message has the order of the arguments of `function`.
    """
    for name, x in given.items():
        fits, wanted = KINDS[name]
        if not fits(x):
            shown = repr(x) if isinstance(x, (str, os.PathLike, type(None))) else f"an object of {type(x)}"
            call = f"{function.__name__}({', '.join(inspect.signature(function).parameters)})"
            raise TypeError(f"`{name}` must be {wanted} Received: {name}={shown}. The order is `{call}`.")


def _is_tree_of_arrays(x: Any) -> bool:
    if isinstance(x, (State, Kernel, Optimizer)) or (isinstance(x, Mapping) and FORMAT in x):
        return False
    return x is not None and all(
        isinstance(leaf, (int, float)) or hasattr(leaf, "dtype") for leaf in jax.tree.leaves(x)
    )


KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "path": (lambda x: isinstance(x, (str, os.PathLike)), "the path of a file or folder."),
    "kernel": (lambda x: isinstance(x, Kernel), "a kernel, such as `jaxopt_keras.adam()`."),
    "state": (lambda x: isinstance(x, State), "what `kernel.init` or `kernel.step` returned."),
    "params": (_is_tree_of_arrays, "a pytree of arrays, as for `kernel.init`."),
}
