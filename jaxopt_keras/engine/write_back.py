"""The end of a step: the parameter as stored, or the amount to add to it, and its slots with its master weight."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.engine import rows, slot_storage
from jaxopt_keras.engine.core import Leaf, Slots
from jaxopt_keras.engine.rows import Rows
from jaxopt_keras.engine.slot_storage import Stored, upcast
from jaxopt_keras.language.options import Options


class Move(NamedTuple):
    """The update of one parameter, or of its touched rows."""

    new: Any  # the new value; None: no update
    delta: Any  # the difference from the old value; None where a stage after the rule changed `new`
    old: Stored
    touched: Rows | None


def write_back(
    options: Options, leaf: Leaf, g: Any, p: Any, slots: Slots, move: Move, seeds: slot_storage.Seeds, write: bool
) -> Any:
    """Return the parameter as stored, or without `write` the amount to add to it, and its slots with its master."""
    if move.new is None or (g is None and not write):
        return p if write else zero_amount(g, p), slots
    if not write and move.delta is not None and slot_storage.is_plain_cast(options, move.old):
        return rows.scatter(zero_amount(g, p), move.delta, move.touched), slots
    q, reached, master = slot_storage.store_parameter(options, leaf, move.new, move.old, seeds)
    slots = slots | {n: rows.scatter(slots[n], x, move.touched) for n, x in master.items()}
    if write:
        return rows.scatter(p, q, move.touched), slots
    return rows.scatter(zero_amount(g, p), reached - upcast(move.old.p), move.touched), slots


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


def put_rows(old: Array, new: Any, touched: Any) -> Array:
    """Replace the touched rows of `old` by `new`; None leaves it as it is."""
    return old if new is None else rows.scatter(old, new, touched)


def zero_amount(g: Any, p: Any) -> Any:
    """Return a zero amount for `p`, or for `g` if `update` was called without `p`; None without gradient."""
    return None if g is None else jnp.zeros_like(upcast(g if p is None else p))
