"""Patterns that match no parameter. They are often misspelt, so `init` and the first step warn of them."""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from jaxopt_keras.language.paths import first_match, leaves_by_path
from jaxopt_keras.packing.trees import Packed


class Unused(NamedTuple):
    """A pattern, the argument that has it, and the names in which it is not found."""

    argument: str
    pattern: str
    names: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"The pattern {self.pattern!r} matches no parameter (argument `{self.argument}`). There are "
            f"{list(self.names)}"
        )


def unused(argument: str, patterns: Iterable[str], names: Iterable[str]) -> list[Unused]:
    """Return those of `patterns` that are found in none of `names`."""
    names = tuple(names)
    return [Unused(argument, x, names) for x in patterns if all(first_match([x], name) is None for name in names)]


def paths_of(params: Any) -> Sequence[str]:
    """Return the paths of a tree of parameters, packed or not."""
    return (
        [part.path for part in params.parts] if isinstance(params, Packed) else [p for p, _ in leaves_by_path(params)]
    )


def warn_of(found: Iterable[Unused], stacklevel: int) -> None:
    """Warn of each pattern in `found`."""
    for pattern in found:
        warnings.warn(str(pattern), stacklevel=stacklevel + 1)
