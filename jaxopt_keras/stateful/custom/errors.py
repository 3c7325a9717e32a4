"""Errors of hooks: they name the class, the hook, the line and the remedy."""

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.core import Tracer

from jaxopt_keras.stateful.custom.overrides import HOOKS

WITHOUT = (
    "run the hooks without compiling them: `jit_compile=False` as an argument of `super().__init__`, or "
    "`optimizer.jit_compile = False`"
)
TRACED = (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError, jax.errors.UnexpectedTracerError,
          jax.errors.TracerIntegerConversionError, jax.errors.NonConcreteBooleanIndexError)  # fmt: skip
LIBRARY = Path(__file__).parents[2]


class HookError(TypeError):
    """An error of code that can only run without compiling."""


@contextlib.contextmanager
def explained(optimizer: Any) -> Iterator[None]:
    """Explain errors of hooks that read the value of an array, which is not known while they are compiled."""
    try:
        yield
    except TRACED as error:
        raise HookError(f"{where(optimizer, error)} needs the value of an array. {remedy(optimizer)}") from error
    except AttributeError as error:
        if not isinstance(getattr(error, "obj", None), (jax.Array, Tracer)):
            raise
        raise HookError(
            f"{where(optimizer, error)} uses `{error.name}` of an array, which arrays of JAX lack. Use `float(x)`, "
            f"`numpy.asarray(x)` or a function of `jax.numpy`, `keras.ops` or `tf`. {remedy(optimizer)}"
        ) from error


def remedy(optimizer: Any) -> str:
    if not optimizer.jit_compile:
        return "Hooks with `jit_compile=False` cannot run inside `jit`: with Keras use `compile(run_eagerly=True)`."
    return (
        "Hooks are traced once and compiled. Choose with arrays (`jax.numpy.where`, `jax.lax.cond`, `tf.cond`), or "
        f"{WITHOUT}."
    )


def frozen_attribute(optimizer: Any, path: str) -> HookError:
    """Return the error for a hook that changes an attribute: a number, an array or a flag."""
    cls = type(optimizer)
    hook = next((name for name in HOOKS if name in vars(cls)), "update_step")
    return HookError(
        f"`{hook}` of {cls.__name__} changes the attribute `{path}`. Hooks are traced once and compiled, so that this "
        "would happen in the first step only. Use `self.iterations` to count steps, and keep arrays in variables of "
        f"`add_variable` or `add_variable_from_reference`, made in `build`; or {WITHOUT}."
    )


def where(optimizer: Any, error: BaseException) -> str:
    """Return the hook, the class and the line of the user's code that raised."""
    frames = traceback.extract_tb(error.__traceback__)
    users = [f for f in frames if LIBRARY not in Path(f.filename).parents and "site-packages" not in f.filename]
    name = type(optimizer).__name__
    if not users:
        return f"A hook of {name}"
    last = users[-1]
    return f"`{last.name}` of {name} (line {last.lineno} of {Path(last.filename).name}: `{last.line}`)"
