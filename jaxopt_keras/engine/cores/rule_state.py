"""One array of a rule: its slots by name as a `State`, and functions of it that are traced once."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from jaxopt_keras.engine.core import Slots
from jaxopt_keras.language.modifier import blank
from jaxopt_keras.language.nested import filled
from jaxopt_keras.language.nested import present as present
from jaxopt_keras.language.rule import Rule


def state_of(rule: Rule, slots: Slots) -> Any:
    """Return the rule's state of one array."""
    return filled(blank(rule), slots)


def traced_once(function: Callable[..., Any], skeleton: Rule, known: dict[Any, Any]) -> Callable[..., Any]:
    """Return `function` with its first argument `skeleton`, under a `jit`: it is traced once for all arrays of a shape.

    The compiler inlines the calls. `known` has the functions of one call of the engine: a lasting `jit` would keep all
    that the rules refer to.
    """
    run = functools.partial(function, skeleton)
    try:
        return known.setdefault((function, skeleton), jax.jit(run))
    except TypeError:  # a rule that is not hashable
        return run
