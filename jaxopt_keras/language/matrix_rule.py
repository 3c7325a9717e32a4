"""`MatrixRule`: a rule that needs whole matrices, in three parts of which only one does."""

from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.clock import Clock
from jaxopt_keras.language.matrices import PLAIN, View, view
from jaxopt_keras.language.rule import Rule


class MatrixRule(Rule):
    """An optimizer whose step needs a function of whole matrices. Subclass it with `lead`, `whole` and `trail`.

    The engine collects the matrices of one shape from all parameters, and divides them among devices for `whole`, so
    that it needs no communication (`engine/cores/stacked.py`).
    """

    grain: ClassVar = "matrix"

    def view(self, shape: tuple[int, ...]) -> View:
        """Return how the rule sees an array of this shape."""
        return view(PLAIN, shape)

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
        seen = self.view(u.shape)
        stack = seen.matrices(u)
        return self.trail(seen.restored(jnp.stack([self.whole(x) for x in stack])) if stack.size else u, p, s, at)
