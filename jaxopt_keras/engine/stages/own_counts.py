"""Each parameter's own count of updates, in the place of the common one (`own_counts`).

A parameter that joins late, or has no gradient in some steps, then has the bias correction of its own updates.
"""

from typing import Any

import jax.numpy as jnp
import optax

from jaxopt_keras.engine.core import Now

OWN_COUNT = "own_count"


def first() -> dict[str, Any]:
    """Return the slot of a fresh parameter."""
    return {OWN_COUNT: jnp.zeros((), jnp.int32)}


def started(now: Now, counts: list[Any]) -> Now:
    """Return the time of an update whose parameters have made so many; None without the option."""
    own = [None if c is None else c.astype(now.t.dtype) + 1 for c in counts]
    return now._replace(own=own) if own and own[0] is not None else now


def counted(count: Any, g: Any) -> dict[str, Any]:
    """Return the slot after an update with the gradient `g`, if there was one; nothing without the option."""
    return {} if count is None else {OWN_COUNT: count if g is None else optax.safe_increment(count)}
