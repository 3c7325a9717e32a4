"""Values of a call besides gradients: their loss, the loss function, a weight, the end of a window of accumulation.

They are entries of the run-time values (`hyper`) of the programs that take them. What was not given has no entry.
"""

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_keras.language.options import Options

LOSS = "the loss"
FUNCTION = "the loss function"  # a `Partial`, as `engine.second` calls it
WEIGHT = "the weight"  # of the gradients of this call in the mean of their window
FLUSH = "the flush"  # whether the window ends with this call
EMPTY = "no gradients"  # whether this call has none that count, and only ends a window

HOW = (
    "`kernel.step(params, state, grads, {0}=...)`, `kernel.update(grads, state, params, {0}=...)`, or in the stateful "
    "face `apply_gradients(pairs, {1}=...)`"
)


def as_loss(x: Any) -> Any:
    return jnp.asarray(x, jnp.result_type(float))


def as_weight(x: Any) -> Any:
    """Return a weight as an array of the default float dtype.

    Raises:
        TypeError: if it is not a real number. ValueError: if it is not one number, or negative, infinite or NaN (which
            is not checked of JAX's arrays: it would wait for them).
    """
    array = _array("weight", x, "a number >= 0, such as the number of tokens")
    if jnp.iscomplexobj(array) or jnp.shape(array):
        raise ValueError(
            f"`weight` must be one real number >= 0. Received: an array of shape {array.shape} and dtype {array.dtype}"
        )
    if not isinstance(x, jax.Array) and not 0 <= float(x) < math.inf:
        raise ValueError(f"`weight` must be a number >= 0. Received: weight={x!r}")
    return array.astype(jnp.result_type(float))


def as_flag(x: Any) -> Any:
    """Return whether to flush as an array of one bool.

    Raises:
        TypeError: if it is something else.
    """
    array = _array("flush", x, "True, False or an array of one bool")
    if array.dtype != bool or array.shape:
        raise TypeError(f"`flush` must be True, False or an array of one bool. Received: flush={x!r}")
    return array


def _array(name: str, x: Any, expected: str) -> Any:
    if not isinstance(x, jax.Array | np.ndarray | np.generic | bool | int | float | complex):
        raise TypeError(f"`{name}` must be {expected}. Received: {name}={x!r} ({type(x).__name__})")
    return jnp.asarray(x)


READERS = {LOSS: as_loss, FUNCTION: lambda x: x, WEIGHT: as_weight, FLUSH: as_flag, EMPTY: as_flag}


def refuse_unused(options: Iterable[Options], given: Iterable[str]) -> None:
    """Raise a TypeError if a weight or a flush would have no effect; `options` are those of the plain programs."""
    accumulating = [o for o in options if o.gradient_accumulation_steps]
    if FLUSH in given and not accumulating:
        raise TypeError(
            "`flush` ends a window of accumulated gradients. Received: a flush for an optimizer that accumulates none. "
            "Leave it out, or set `gradient_accumulation_steps`."
        )
    if WEIGHT in given and not (accumulating and all(o.weighted_accumulation for o in accumulating)):
        raise TypeError(
            "`weight` is that of gradients in the mean of several calls. Received: a weight for an optimizer that "
            f"{'weighs its calls alike' if accumulating else 'accumulates no gradients'}. Leave it out, or set "
            "`gradient_accumulation_steps` and `weighted_accumulation=True`."
        )


def with_given(hyper: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return run-time values with those that were given, as arrays."""
    read = {name: READERS[name](x) for name, x in given.items()}
    if EMPTY in read and EMPTY in hyper:
        read[EMPTY] = read[EMPTY] | hyper[EMPTY]
    return hyper | read


def read_weight(hyper: dict[str, Any]) -> Any:
    """Return the weight of a call; that of a call without gradients is 0.

    Raises:
        ValueError: if it was not given.
    """
    if WEIGHT in hyper:
        return jnp.where(hyper[EMPTY], 0, hyper[WEIGHT]) if EMPTY in hyper else hyper[WEIGHT]
    if EMPTY in hyper:
        return as_weight(0)
    raise ValueError(
        "`weighted_accumulation` needs the weight of the gradients, such as the number of tokens that they are a mean "
        f"of. Received: none. Pass it: {HOW.format('weight', 'weight')}."
    )


def found(hyper: Any, name: str) -> Any:
    """Return an entry that was given to a program, or to the first of its groups that takes it; None: there is none."""
    if isinstance(hyper, dict) and name in hyper:
        return hyper[name]
    parts = hyper if isinstance(hyper, list) else hyper.values() if isinstance(hyper, dict) else ()
    return next((x for x in (found(part, name) for part in parts) if x is not None), None)


def zeroed(kept: Any, grads: Any) -> Any:
    """Return gradients, sparse ones too, if `kept`; otherwise zeros in their place."""
    is_float = lambda g: jnp.issubdtype(getattr(g, "dtype", int), jnp.inexact)
    return jax.tree.map(lambda g: jnp.where(kept, g, 0) if is_float(g) else g, grads)


def kept_only(kept: Any, hyper: dict[str, Any], grads: Any, loss: Any) -> tuple[dict[str, Any], Any, Any]:
    """Return the values of a call: as they are if `kept`, otherwise those of a call without gradients."""
    return with_given(hyper, {EMPTY: ~kept}), zeroed(kept, grads), zeroed(kept, loss)
