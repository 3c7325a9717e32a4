"""The lock around donated calls: no other thread may read an array after a step has taken it and before it is replaced.

There is one lock for all optimizers and variables, since optimizers may share variables, and a wrapper its inner
optimizers. Steps of several threads run one after the other; a read waits for the end of a step. The same thread may
take it again, since hooks and callbacks read variables.
"""

import functools
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

LOCK = threading.RLock()

F = TypeVar("F", bound=Callable[..., Any])


def locked(method: F) -> F:
    """Decorate a function to hold the lock."""

    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        with LOCK:
            return method(*args, **kwargs)

    return run  # type: ignore[return-value]


def in_full(store: Callable[[Any], Any], items: Iterable[Any]) -> None:
    """Call `store` for each item, also after an error, so that no result of a donated call is lost. Raise the first."""
    errors = []
    for item in items:
        try:
            store(item)
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]
