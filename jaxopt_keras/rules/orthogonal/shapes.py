"""Which parameters Muon sees as matrices."""

import functools
from typing import Any

from jaxopt_keras.language.matrices import PLAIN, View, view
from jaxopt_keras.language.option_values import Lists, check_pattern, patterns
from jaxopt_keras.language.paths import first_match


def read_layers(layers: Any) -> tuple[str, ...]:
    """Validate `exclude_layers`: return patterns."""
    if not isinstance(layers, list | tuple | None):
        raise TypeError(f"`exclude_layers` must be a list of regular expressions. Received: exclude_layers={layers!r}")
    return patterns("exclude_layers", layers or ())


def read_views(name: str, value: Any) -> Any:
    """Validate the option `name`: return a function, a `View`, or pairs of a pattern and a description."""
    if callable(value) or isinstance(value, View):
        return value
    pairs = tuple(value.items()) if isinstance(value, dict) else () if value is None else value
    if not (isinstance(pairs, Lists) and all(isinstance(x, Lists) and len(x) == 2 for x in pairs)):
        raise TypeError(f"`{name}` must map patterns to descriptions of axes. Received: {name}={value!r}")
    for pattern, text in pairs:
        check_pattern(name, pattern)
        if not isinstance(text, str | None):
            raise TypeError(f"`{name}` must map patterns to descriptions of axes. Received: {pattern!r}: {text!r}")
    return tuple((pattern, text) for pattern, text in pairs)


read_matrices = functools.partial(read_views, "matrices")


def seen_as(matrices: Any, path: str, shape: tuple[int, ...]) -> View | None:
    """Return how an array is seen as matrices; None: it is no matrix.

    Args:
        matrices: a result of `read_matrices`.
    """
    if isinstance(matrices, View):
        return matrices
    text: Any
    if callable(matrices):
        text = matrices(path, shape)
    else:
        usual = PLAIN if len(shape) == 2 else None
        text = next((text for pattern, text in matrices if first_match([pattern], path) is not None), usual)
    return None if text is None else view(text, shape, path)


def is_told(matrices: Any, path: str) -> bool:
    """Whether `matrices`, a result of `read_matrices`, says something about the array with this path, be it None."""
    if callable(matrices) or isinstance(matrices, View):
        return True
    return first_match([pattern for pattern, _ in matrices], path) is not None
