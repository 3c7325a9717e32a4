"""The end of a step: the parameter as stored, or the amount to add to it, and its slots with its master weight."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.engine import rows
from jaxopt_keras.engine.core import Leaf, Slots
from jaxopt_keras.engine.rows import Rows
from jaxopt_keras.engine.slot_storage import Seeds, Stored, upcast
from jaxopt_keras.language.options import Options
from jaxopt_keras.storage.masters import MASTER, split_master
from jaxopt_keras.storage.rounding import stochastic


class Move(NamedTuple):
    """The update of one parameter, or of its touched rows."""

    new: Any  # the new value; None: no update
    delta: Any  # the difference from the old value; None where a stage after the rule changed `new`
    old: Stored
    touched: Rows | None


def write_back(
    options: Options, leaf: Leaf, g: Any, p: Any, slots: Slots, move: Move, seeds: Seeds, write: bool
) -> tuple[Any, Slots]:
    """Return the parameter as stored, or without `write` the amount to add to it, and its slots with its master."""
    if move.new is None or (g is None and not write):
        return p if write else zero_amount(g, p), slots
    stored = represented = move.new
    dtype = stored.dtype if p is None else p.dtype
    seed = (lambda: seeds(leaf, "")) if options.rounding == "stochastic" else None
    if MASTER in move.old.slots:
        stored, master = split_master(move.new, str(options.master_weights), dtype, seed)
        slots = slots | {MASTER: rows.scatter(slots[MASTER], master, move.touched)}
    elif seed and jnp.finfo(dtype).bits < 32:
        stored = stochastic(move.new, dtype, seed())
        represented = upcast(stored)
    elif not write and move.delta is not None:
        return rows.scatter(zero_amount(g, p), move.delta, move.touched), slots
    if write:
        return rows.scatter(p, stored.astype(dtype), move.touched), slots
    return rows.scatter(zero_amount(g, p), represented - upcast(move.old.p), move.touched), slots


def apply_constraint(options: Options, leaf: Leaf, p: Array, g: Any) -> Array:
    """Apply the constraint of a parameter that has a gradient.

    Raises:
        ValueError: if the constraint returns another shape.
    """
    constraint = None if g is None else options.constraint(leaf.path)
    if constraint is None:
        return p
    q = constraint(p)
    if getattr(q, "shape", None) != p.shape:
        raise ValueError(
            f"The constraint of `{leaf.path}` must return an array of its shape {p.shape}. Received: an array of "
            f"shape {getattr(q, 'shape', None)}"
        )
    return jnp.asarray(q, p.dtype)


def zero_amount(g: Any, p: Any) -> Any:
    """Return a zero amount for `p`, or for `g` if `update` was called without `p`; None without gradient."""
    return None if g is None else jnp.zeros_like(upcast(g if p is None else p))
