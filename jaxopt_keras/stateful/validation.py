"""What callers hand to an optimizer, checked at its door: pairs, lists of variables, gradients."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxopt_keras.language import sparse
from jaxopt_keras.stateful.variable import several, value_of
from jaxopt_keras.stateful.variable_kinds import Handle


def pairs(grads_and_vars: Any) -> tuple[list[Any], list[Any]]:
    """Gradients and variables out of pairs.

    Raises:
        TypeError: if these are no pairs.
    """
    kind = "(gradient, variable) pairs, such as `zip(grads, variables)`"
    grads, variables = [], []
    for pair in several("grads_and_vars", grads_and_vars, kind):
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
            raise TypeError(f"`grads_and_vars` must be {kind}. Received: {str(pair)[:80]} among them")
        grads.append(pair[0])
        variables.append(pair[1])
    return grads, variables


def listed(name: str, var_list: Any) -> list[Any]:
    """A list of variables out of one, or out of a function that returns it."""
    return list(several(name, var_list() if callable(var_list) else var_list))


def refuse_traced(x: Any) -> None:
    """Raises a TypeError inside `jit` and the like, where a variable must not be written: `x` would leak."""
    if isinstance(x, Tracer):
        raise TypeError(
            "Variables and state cannot be updated inside `jit`, `grad` or another transformation of JAX. Use "
            "`stateless_apply` there, or the pure face, e.g. `jaxopt_keras.adam(...)`."
        )


def checked(g: Any, h: Handle) -> Any:
    """A gradient of the shape of its variable.

    Raises:
        TypeError: if it is not made of numbers. ValueError: if the shape is another.
    """
    if g is None or getattr(g, "dtype", None) == jax.dtypes.float0:
        return None
    shape = tuple(h.shape)
    if isinstance(g, jax.Array) and not isinstance(g, Tracer) and g.shape == shape:  # nearly always
        return g
    g = value_of(g)
    g = numbers(g, h.path)
    if sparse.is_sparse(g):
        refuse_traced(jax.tree.leaves(g)[0])
        right = sparse.fits(g, shape)
    else:
        refuse_traced(g)
        right = g.shape == shape
    if not right:
        raise ValueError(
            f"The gradient of `{h.path}` must have the variable's shape {shape}. Received: {sparse.shape_of(g)}"
        )
    return g


def numbers(g: Any, path: str) -> Any:
    """A gradient, dense or sparse, made of arrays of numbers.

    Raises:
        TypeError: if it is not.
    """
    if isinstance(g, jax.Array) or sparse.is_bcoo(g):
        return g
    if isinstance(g, sparse.IndexedSlices):
        return dataclasses.replace(g, values=numbers(g.values, path), indices=numbers(g.indices, path))
    if hasattr(g, "__jax_array__"):
        return jnp.asarray(g)
    array = np.array(g)  # JAX may look at the memory of a NumPy array later, when its owner has written there
    if array.dtype.kind in "OSUbMm":
        raise TypeError(f"The gradient of `{path}` must be an array of numbers. Received: {g!r}")
    return array


def of_length(name: str, values: Any, length: int) -> list[Any]:
    """A list of so many values."""
    values = list(several(name, values))
    if len(values) != length:
        raise ValueError(f"`{name}` must have {length} elements. Received: {len(values)}")
    return values
