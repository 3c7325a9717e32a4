"""What the other implementations have in common, and how one takes our arguments."""

import contextlib
import importlib
import importlib.metadata
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax

from jaxopt_keras.language.rule import Rule
from jaxopt_keras.parity.cases import Case, Rate, Terms
from jaxopt_keras.parity.histories import History


class Absent(Exception):
    """Why there is nothing to compare with."""


class Peer(Protocol):
    """Another implementation. Its constructor raises `Absent` where it is not installed."""

    version: str

    def terms(self, optimizer: type[Rule]) -> list[Terms]:
        """What may be compared, an entry for each variant of ours. Raises `Absent`."""
        ...

    def run(self, case: Case) -> History:
        """The same case."""
        ...


def load(name: str) -> Any:
    """A library that need not be there, for the type checker neither."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Absent(f"{name} is not installed") from error


def parameters_of(function: Callable[..., Any]) -> Collection[str]:
    return inspect.signature(function).parameters


def name_of(optimizer: type[Rule]) -> str:
    """Of the file of the rule, and so of its function; in snake case.

    >>> from jaxopt_keras.rules import ScheduleFreeAdamW
    >>> name_of(ScheduleFreeAdamW)
    'schedule_free_adamw'
    """
    return optimizer.__module__.rpartition(".")[2]


def times(factor: float, rate: Rate) -> Rate:
    return (lambda count: factor * rate(count)) if callable(rate) else factor * rate


@contextlib.contextmanager
def default_promotion() -> Iterator[None]:
    """JAX's own promotion rules, which Keras and optax rely on."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def no_more() -> dict[str, Any]:
    return {}


class Agreement(NamedTuple):
    """Under which conditions a peer's optimizer is ours."""

    # Its arguments, from those of ours for which another name is not enough.
    more: Callable[..., dict[str, Any]] = no_more
    pinned: Mapping[str, Any] = {}  # arguments of ours that have to have one value
    scheduled: bool = True
    variant: str = "optax"
    decayed: bool = False  # torch: its weight decay is ours


class Dialect(NamedTuple):
    """How a peer's function takes our arguments."""

    function: Callable[..., Any]
    names: Mapping[str, str]  # its name for an argument of ours, where it has none of ours
    agreement: Agreement

    def name(self, ours: str) -> str | None:
        theirs = parameters_of(self.function)
        return next((name for name in (ours, self.names.get(ours)) if name in theirs), None)

    def knows(self, ours: str) -> bool:
        return self.name(ours) is not None or ours in parameters_of(self.agreement.more)

    def arguments(self, ours: dict[str, Any]) -> dict[str, Any]:
        """None stands for the function's own default, which then means the same."""
        more = self.agreement.more(**{name: ours[name] for name in parameters_of(self.agreement.more)})
        named = {self.name(name): x for name, x in ours.items() if x is not None}
        return {name: x for name, x in named.items() if name is not None} | more
