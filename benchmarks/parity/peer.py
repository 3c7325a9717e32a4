"""The interface of peers, and the translation of our arguments to theirs."""

import contextlib
import importlib
import importlib.metadata
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax

from benchmarks.parity.cases import Case, Rate, Terms
from benchmarks.parity.histories import History
from jaxopt_keras import optimizers
from jaxopt_keras.language.rule import Rule


class Absent(Exception):
    """Raised with the reason why there is nothing to compare with."""


class Peer(Protocol):
    """Another implementation. Its constructor raises `Absent` where it is not installed."""

    version: str

    def terms(self, optimizer: type[Rule]) -> list[Terms]:
        """The settings that can be compared, an entry for each of our variants. Raises `Absent` if there are none."""
        ...

    def run(self, case: Case) -> History:
        """Runs a case with the peer."""
        ...


def load(name: str) -> Any:
    """Imports an optional library; type checkers do not see the import. Raises `Absent` if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Absent(f"{name} is not installed") from error


def parameters_of(function: Callable[..., Any]) -> Collection[str]:
    return inspect.signature(function).parameters


def name_of(optimizer: type[Rule]) -> str:
    """The name of the rule's module, and so of its function, in snake case.

    >>> from jaxopt_keras.rules import ScheduleFreeAdamW
    >>> name_of(ScheduleFreeAdamW)
    'schedule_free_adamw'
    """
    return optimizer.__module__.rpartition(".")[2]


RULES: dict[str, type[Rule]] = {name_of(rule): rule for rule in optimizers.RULES.values()}


def times(factor: float, rate: Rate) -> Rate:
    return (lambda count: factor * rate(count)) if callable(rate) else factor * rate


@contextlib.contextmanager
def default_promotion() -> Iterator[None]:
    """JAX's own promotion rules, which Keras and optax rely on."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Agreement(NamedTuple):
    """The conditions under which a peer's optimizer computes the same as ours."""

    # Converts those of our arguments that need more than another name.
    convert: Callable[..., dict[str, Any]] = lambda: {}
    pinned: Mapping[str, Any] = {}  # arguments of ours with a fixed value
    scheduled: bool = True
    variant: str = "optax"
    decayed: bool = False  # torch only: the weight decay is the same
    shapes: Mapping[str, tuple[int, ...]] = {}  # optax only: of the arrays that it takes; none: those of the rule
    matrices: bool = False  # torch only: it updates matrices alone, whose epsilon must be negligible


class Dialect(NamedTuple):
    """Translates our arguments to those of a peer's function."""

    function: Callable[..., Any]
    names: Mapping[str, str]  # our names -> the peer's names, where they differ
    agreement: Agreement

    def name(self, ours: str) -> str | None:
        theirs = parameters_of(self.function)
        return next((name for name in (ours, self.names.get(ours)) if name in theirs), None)

    def knows(self, ours: str) -> bool:
        return self.name(ours) is not None or ours in parameters_of(self.agreement.convert)

    def arguments(self, ours: dict[str, Any]) -> dict[str, Any]:
        """The peer's arguments. None selects the function's own default, which then means the same."""
        converted = self.agreement.convert(**{name: ours[name] for name in parameters_of(self.agreement.convert)})
        named = {self.name(name): x for name, x in ours.items() if x is not None}
        return {name: x for name, x in named.items() if name is not None} | converted
