"""Values of options that are not numbers: patterns, decay masks, formats of storage. A reader validates each."""

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np

from jaxopt_keras.language.fields import Field
from jaxopt_keras.language.paths import leaves_by_path

HOST = "pinned_host"
Format = Literal["float32", "bfloat16", "float16", "float8", "int8", "int4"]
FORMATS = get_args(Format)
Lists = list | tuple
Sets = set | frozenset


def check_pattern(name: str, pattern: Any) -> None:
    """Raise a TypeError or a ValueError if `pattern` is not a regular expression."""
    if not isinstance(pattern, str):
        raise TypeError(f"`{name}` must hold regular expressions. Received: {pattern!r} ({type(pattern).__name__})")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"`{name}` must hold regular expressions. Received: {pattern!r} ({error})") from None


class Mask(NamedTuple):
    """A decay mask: the paths of a tree of bools, and whether the parameters at or below each path are excluded."""

    entries: tuple[tuple[str, bool], ...]

    @classmethod
    def of(cls, tree: Any) -> "Mask":
        found = leaves_by_path(tree)
        if not all(isinstance(x, (bool, np.bool_)) for _, x in found):
            raise TypeError(f"`exclude_from_weight_decay` must be a tree of True and False. Received: {tree!r}")
        return cls(tuple((path, bool(x)) for path, x in found))

    def __call__(self, path: str, p: Any) -> bool:
        found = [excluded for at, excluded in self.entries if at in ("", path) or path.startswith(f"{at}/")]
        if not found:
            raise ValueError(
                "`exclude_from_weight_decay` must be a tree like the parameters, or a prefix of it. Received: one "
                f"without `{path}`. It has {[at for at, _ in self.entries]}"
            )
        return found[0]


class MaskOfParams(NamedTuple):
    """A function of the parameters that returns a mask."""

    function: Callable[[Any], Any]


def _takes_one(function: Callable[..., Any]) -> bool:
    """Whether a function has exactly one required argument."""
    try:
        known = inspect.signature(function).parameters.values()
    except ValueError:  # a builtin without a signature
        return False
    positional = [p for p in known if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return sum(p.default is p.empty for p in positional) == 1 and not any(p.kind is p.VAR_POSITIONAL for p in known)


def read_window_length(value: Any) -> Any:
    """Validate `gradient_accumulation_steps`: return None, an integer that is 0 or at least 2, or a function.

    Raises:
        TypeError: if it is something else, or the function does not return one number. ValueError: for other integers.
    """
    name, received = "gradient_accumulation_steps", f"Received: gradient_accumulation_steps={value!r}"
    if callable(value) and not isinstance(value, type):
        try:
            length = jax.eval_shape(value, jax.ShapeDtypeStruct((), np.int32))
        except TypeError as error:
            raise TypeError(
                f"`{name}` must be an integer, or a function of the number of updates that JAX can trace. {received}, "
                f"which raised: {error}"
            ) from error
        if np.shape(length) or not isinstance(length, jax.ShapeDtypeStruct) or length.dtype.kind not in "iuf":
            raise TypeError(f"The function `{name}` must return one number. {received}, which returned {length}")
        return value
    value = Field.read(int | None).check(name, value)
    if value is not None and (value < 0 or value == 1):
        raise ValueError(f"`{name}` must be an integer >= 2, a function, or None. {received}")
    return value


def read_exclusion(value: Any) -> Any:
    """Validate `exclude_from_weight_decay`: return a mask, a function, or a tuple of patterns."""
    if isinstance(value, (Mask, MaskOfParams)):
        return value
    if callable(value):
        return MaskOfParams(value) if _takes_one(value) else value
    leaves = jax.tree.leaves(value)
    if leaves and all(isinstance(x, (bool, np.bool_)) for x in leaves):
        return Mask.of(value)
    if not isinstance(value, str | Lists | Sets | None):
        raise TypeError(
            "`exclude_from_weight_decay` must be regular expressions, a function, or a tree of bools. Received: "
            f"exclude_from_weight_decay={value!r}"
        )
    return patterns("exclude_from_weight_decay", [value] if isinstance(value, str) else value or ())


def patterns(name: str, values: Iterable[Any]) -> tuple[str, ...]:
    """Return the regular expressions of the option `name`, validated."""
    found = tuple(values)
    for pattern in found:
        check_pattern(name, pattern)
    return found


def read_injected(value: Any) -> Any:
    """Validate `inject_hyperparams`: return True, a tuple of names, or None."""
    names = (value,) if isinstance(value, str) else value
    if isinstance(names, Lists | Sets) and all(isinstance(name, str) for name in names):
        return tuple(sorted(names)) or None
    if not isinstance(value, bool | None):
        raise TypeError(
            f"`inject_hyperparams` must be True, or names of hyperparameters. Received: inject_hyperparams={value!r}"
        )
    return value or None


def read_constraints(value: Any) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    """Validate `constraints`: return pairs of a pattern and a function."""
    pairs = tuple(value.items()) if isinstance(value, dict) else () if value is None else value
    if not (isinstance(pairs, Lists) and all(isinstance(x, Lists) and len(x) == 2 for x in pairs)):
        raise TypeError(f"`constraints` must map patterns to functions. Received: constraints={value!r}")
    for pattern, function in pairs:
        check_pattern("constraints", pattern)
        if not callable(function):
            raise TypeError(f"`constraints` must map patterns to functions. Received: {pattern!r}: {function!r}")
    return tuple((pattern, function) for pattern, function in pairs)


def read_formats(value: Any) -> Any:
    """Validate `state_dtype`: return a format, pairs of a slot and its format, or None."""
    pairs = sorted(value.items()) if isinstance(value, dict) else value
    for name in [name for _, name in pairs] if isinstance(pairs, Lists) else [pairs]:
        if name is not None and name not in FORMATS:
            raise ValueError(
                f"`state_dtype` must be one of {list(FORMATS)}, or a dict of these by slot name. "
                f"Received: state_dtype={value!r}"
            )
    return tuple((slot, name) for slot, name in pairs) if isinstance(pairs, list) else pairs


def read_offload(value: Any) -> Any:
    """Validate `offload`: return the patterns of slots that are kept in host memory, or None."""
    if value is None:
        return None
    if isinstance(value, Lists):  # patterns, as this function returns them
        return patterns("offload", value) or None
    kinds = value if isinstance(value, dict) else {"": value}
    found = patterns("offload", kinds)
    if any(kind != HOST for kind in kinds.values()):
        raise ValueError(f"`offload` must be {HOST!r}, or map patterns to it. Received: offload={value!r}")
    return found or None


def read_axes(value: Any) -> Any:
    """Validate `axis_name`: return a name, a tuple of names, or None."""
    axes = (value,) if isinstance(value, str | None) else value
    if not (isinstance(axes, Lists) and all(isinstance(a, str | None) and a != "" for a in axes)):
        raise TypeError(
            f"`axis_name` must be the name of a mapped axis, or a tuple of names. Received: axis_name={value!r}"
        )
    return tuple(axes) if isinstance(value, list) else value
