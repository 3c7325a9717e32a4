"""How rules, options and schedules print: as the call that makes them, without arguments that have their defaults."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax import Array


def call(name: str, *arguments: str) -> str:
    """Return the text of a call."""
    return f"{name}({', '.join(argument for argument in arguments if argument)})"


def arguments_of(x: Any, always: str = "", defaults: Mapping[str, Any] | None = None) -> list[str]:
    """Return the arguments of a dataclass as `name=value`: those that differ from their defaults, and that `always`.

    >>> from jaxopt_keras.language.options import Options
    >>> arguments_of(Options(clipnorm=1.0, use_ema=False))
    ['clipnorm=1.0']
    """
    usual = {f.name: f.default for f in dataclasses.fields(x)} | dict(defaults or {})
    values = {name: getattr(x, name) for name in usual if name in vars(x)}
    return [f"{n}={value!r}" for n, value in values.items() if n == always or not _is(usual[n], value)]


def _is(default: Any, value: Any) -> bool:
    if isinstance(value, Array) or callable(value):  # may be traced; and `==` of others' classes may do anything
        return value is default
    return type(value) is type(default) and value == default
