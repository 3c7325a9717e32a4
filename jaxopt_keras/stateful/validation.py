"""Validation of the arguments of `Optimizer`'s methods: pairs, lists of variables, gradients."""

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxopt_keras.language import sparse
from jaxopt_keras.stateful.packed_variables import Buffer
from jaxopt_keras.stateful.variable import check_iterable, value_of
from jaxopt_keras.stateful.variable_kinds import Handle


def pairs(grads_and_vars: Any) -> tuple[list[Any], list[Any]]:
    """Return the gradients and the variables of (gradient, variable) pairs.

    Raises:
        TypeError: if `grads_and_vars` are not pairs.
    """
    kind = "(gradient, variable) pairs, such as `zip(grads, variables)`"
    grads, variables = [], []
    for pair in check_iterable("grads_and_vars", grads_and_vars, kind):
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
            raise TypeError(f"`grads_and_vars` must be {kind}. Received: {str(pair)[:80]} among them")
        grads.append(pair[0])
        variables.append(pair[1])
    return grads, variables


def variable_list(name: str, var_list: Any) -> list[Any]:
    """Return a list of variables; `var_list` is a list, or a function that returns one. `name` is used in the error."""
    return list(check_iterable(name, var_list() if callable(var_list) else var_list))


def refuse_traced(x: Any) -> None:
    """Raise a TypeError if `x` is traced: writing it to a variable would leak it out of `jit`, `grad` and the like."""
    if isinstance(x, Tracer):
        raise TypeError(
            "Variables and state cannot be updated inside `jit`, `grad` or another transformation of JAX. Use "
            "`stateless_apply` there, or the pure face, e.g. `jaxopt_keras.adam(...)`."
        )


def check_pairs(grads: list[Any], handles: list[Handle]) -> None:
    """Warn of missing gradients.

    Raises:
        ValueError: for a repeated variable, if there is no gradient, or for a buffer with a variable that is frozen.
    """
    ids = [id(h.variable) for h in handles]
    if len(set(ids)) != len(ids):
        twice = next(h.path for i, h in enumerate(handles) if ids[i] in ids[:i])
        raise ValueError(f"Each variable may occur once. Received: `{twice}` twice. Add its gradients.")
    packed = [v for h in handles if isinstance(h.variable, Buffer) for v in h.variable.variables]
    if frozen := [v.path for v in packed if not v.trainable]:
        raise ValueError(
            f"A step over a buffer updates all its variables. Received: {frozen} with `trainable=False`, in a buffer "
            "that the optimizer has slots for already. Set it before `build` and the first step."
        )
    if all(g is None for g in grads):
        paths = [h.path for h in handles]
        raise ValueError(f"No gradients provided for any variable. Received: None for each of {paths}")
    if missing := [h.path for g, h in zip(grads, handles, strict=True) if g is None and h.trainable]:
        warnings.warn(f"Gradients do not exist for variables {missing}: they are not updated.", stacklevel=4)


def checked_gradient(g: Any, h: Handle) -> Any:
    """Return a gradient, dense or sparse, that has its variable's shape; None for None and for float0.

    Raises:
        TypeError: if it is not numeric, or is traced. ValueError: if the shape differs.
    """
    if g is None or getattr(g, "dtype", None) == jax.dtypes.float0:
        return None
    shape = tuple(h.shape)
    if isinstance(g, jax.Array) and not isinstance(g, Tracer) and g.shape == shape:  # the usual case
        return g
    g = as_gradient(value_of(g), h.path)
    refuse_traced(jax.tree.leaves(g)[0])
    if not (sparse.fits(g, shape) if sparse.is_sparse(g) else g.shape == shape):
        raise ValueError(
            f"The gradient of `{h.path}` must have the variable's shape {shape}. Received: {sparse.shape_of(g)}"
        )
    return g


def without_frozen(grads: list[Any], handles: list[Any], stacklevel: int) -> list[Any]:
    """Return `grads` with None for the variables that have `trainable=False`. Warn of those that had a gradient."""
    frozen = [h is not None and not h.trainable for h in handles]
    if ignored := [h.path for g, h, off in zip(grads, handles, frozen, strict=True) if off and g is not None]:
        warnings.warn(
            f"Variables with `trainable=False` are not updated. Received: gradients for {ignored}. Pass None for them, "
            "or leave them out.",
            stacklevel=stacklevel + 1,
        )
    return [None if off else g for g, off in zip(grads, frozen, strict=True)]


def as_gradient(g: Any, path: str) -> Any:
    """Convert a gradient, dense or sparse, to arrays of numbers.

    Raises:
        TypeError: if it is not numeric.
    """
    if isinstance(g, jax.Array) or sparse.is_bcoo(g):
        return g
    if isinstance(g, sparse.IndexedSlices):
        return dataclasses.replace(g, values=as_gradient(g.values, path), indices=as_gradient(g.indices, path))
    if hasattr(g, "__jax_array__"):
        return jnp.asarray(g)
    array = np.array(g)  # a copy: JAX may read a NumPy array's memory after its owner has changed it
    if array.dtype.kind in "OSUbMm":
        raise TypeError(f"The gradient of `{path}` must be an array of numbers. Received: {g!r}")
    return array


def of_length(name: str, values: Any, length: int) -> list[Any]:
    """Return `values` as a list of `length` elements.

    Raises:
        ValueError: if there are more or fewer.
    """
    values = list(check_iterable(name, values))
    if len(values) != length:
        raise ValueError(f"`{name}` must have {length} elements. Received: {len(values)}")
    return values
