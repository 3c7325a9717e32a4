"""Functions with TensorFlow's signatures, made from functions of JAX and Keras."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax

from jaxopt_keras.stateful.operators import in_tensor, value_of


def with_signature(text: str, target: Callable[..., Any]) -> Callable[..., Any]:
    """Return `target` with the signature of a function of TensorFlow.

    Args:
        text: TensorFlow's signature, such as `"reduce_sum(input_tensor, axis=None)"`. Arguments without a default are
            passed to `target` by position, others by name. An argument `name` is added, which has no effect.
        target: the function. It gets arrays in the place of variables and tensors.
    """
    name, _, arguments = text.partition("(")
    signature = inspect.signature(eval(f"lambda {arguments.removesuffix(')')}: None"))
    named = [p.name for p in signature.parameters.values() if p.default is not p.empty or p.kind is p.KEYWORD_ONLY]

    def call(*args: Any, name: str | None = None, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        given = {key: jax.tree.map(value_of, x) for key, x in given.items()}
        keywords = {key: given.pop(key) for key in named if key in given}
        positional = [
            x for key, x in given.items() if signature.parameters[key].kind is not inspect.Parameter.VAR_POSITIONAL
        ]
        for key, x in given.items():
            if signature.parameters[key].kind is inspect.Parameter.VAR_POSITIONAL:
                positional += x
        return jax.tree.map(in_tensor, target(*positional, **keywords))

    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"`tf.{text}`, by `{getattr(target, '__module__', '')}.{getattr(target, '__name__', '')}`."
    return call


def table(lines: dict[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Return functions by name from functions by signature."""
    return {text.partition("(")[0]: with_signature(text, target) for text, target in lines.items()}


def with_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that takes variables and tensors too, and TF's argument `name`, which has no effect."""

    @functools.wraps(function)
    def call(*args: Any, name: str | None = None, **kwargs: Any) -> Any:
        return jax.tree.map(in_tensor, function(*jax.tree.map(value_of, args), **jax.tree.map(value_of, kwargs)))

    return call
