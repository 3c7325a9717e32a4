"""The arrays of a `State` by name, also of a modifier around another rule."""

from collections.abc import Collection
from typing import Any, NamedTuple


class Both(NamedTuple):
    """The slots, scalars or sums of a modifier itself, and those of the rule inside it. None: there are none."""

    own: Any
    inner: Any


def outer(name: str, own: Collection[str]) -> str:
    """Return the name outside of a modifier of what is `name` inside it: the same, unless it is one of the `own`."""
    return f"inner_{name}" if name in own else name


def fields_in(x: Any) -> dict[str, Any]:
    """Return the fields of a NamedTuple by name, those inside `Both` too; {} for None."""
    if not isinstance(x, Both):
        return {} if x is None else x._asdict()
    own = fields_in(x.own)
    return own | {outer(name, own): value for name, value in fields_in(x.inner).items()}


def present(x: Any) -> dict[str, Any]:
    """Return the fields that are not None, by name."""
    return {name: value for name, value in fields_in(x).items() if value is not None}


def filled(blank: Any, values: dict[str, Any]) -> Any:
    """Return a copy of `blank` with these fields, by name, and None for the others: the inverse of `present`.

    >>> class Adam(NamedTuple):
    ...     momentum: Any
    ...     velocity: Any
    >>> filled(Both(None, Adam(0, 0)), {"momentum": 1})
    Both(own=None, inner=Adam(momentum=1, velocity=None))
    """
    if not isinstance(blank, Both):
        return None if blank is None else blank._make(values.get(name) for name in blank._fields)
    own = fields_in(blank.own)
    inside = {name: values.get(outer(name, own)) for name in fields_in(blank.inner)}
    return Both(filled(blank.own, values), filled(blank.inner, inside))
