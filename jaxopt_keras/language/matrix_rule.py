"""`MatrixRule`: a rule that needs whole matrices, in three parts of which only one does."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.clock import Clock
from jaxopt_keras.language.matrices import PLAIN, View, view
from jaxopt_keras.language.rule import Rule

# What `update` calls for the matrices that the rule sees in an array, in the place of `whole` for each.
COMPUTED: ContextVar[Callable[[Array], Array] | None] = ContextVar("computed", default=None)


class MatrixRule(Rule):
    """An optimizer whose step needs a function of whole matrices. Subclass it with `lead`, `whole` and `trail`.

    The engine collects the matrices of one shape from all parameters, and divides them among devices for `whole`, so
    that it needs no communication (`engine/cores/stacked.py`).
    """

    grain: ClassVar = "matrix"

    def view(self, shape: tuple[int, ...]) -> View:
        """Return how the rule sees an array of this shape."""
        return view(PLAIN, shape)

    def overlooks(self, path: str, p: Any) -> bool:
        """Whether an array of matrices goes to the fallback though the user has not said so."""
        return False

    def about(self, p: Any) -> str:
        seen = self.view(p.shape)
        return "" if seen.matrix == p.shape else str(seen)

    def note(self) -> str:
        """Say how `whole` is computed, for a plan."""
        return ""

    def lead(self, g: Array, p: Array, s: Any, at: Clock) -> tuple[Array, Any]:
        """Return the argument of `whole`, of the shape of `g`, and the new slots. Acts on each element alone."""
        return g, s

    def whole(self, u: Array) -> Array:
        """Return a matrix of the shape of the matrix `u`. It may depend on the rule's numbers, but not on its view."""
        raise NotImplementedError(f"{type(self).__name__} needs `whole(self, u) -> matrix`.")

    def trail(self, x: Array, p: Array, s: Any, at: Clock) -> tuple[Array, Any]:
        """Return the amount to add to `p` and the new slots, from the results of `whole` in the shape of `p`."""
        return -at.lr * x, s

    def update(self, g: Array, p: Array, s: Any, at: Clock) -> tuple[Array, Any]:
        u, s = self.lead(g, p, s, at)
        return self.trail((COMPUTED.get() or self._one_by_one)(u), p, s, at)

    def _one_by_one(self, u: Array) -> Array:
        seen = self.view(u.shape)
        stack = seen.matrices(u)
        return seen.restored(jnp.stack([self.whole(x) for x in stack])) if stack.size else u
