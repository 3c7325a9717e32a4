"""GaLore: Adam on gradients that are projected on a few directions."""

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import ema, gathered, placed_as, product, root, squarable, square
from jaxopt_keras.language.rule import Amount, Clock, Decay, Exact, NonNegative, Rate, Rule, Signed, Slot, Within


class GaLore(Rule):
    """GaLore, "gradient low-rank projection" (Zhao et al. 2024, arXiv:2403.03507), around Adam.

        h = Pᵀ g                                or h = g P
        m <- beta_1 m + (1 - beta_1) h          v <- beta_2 v + (1 - beta_2) h²
        r = lr sqrt(1 - beta_2^t) / (1 - beta_1^t),  n = m / (sqrt(v) + epsilon)
        p <- (p - r scale P n) (1 - lr weight_decay)        or n Pᵀ in the place of P n

    P has the first `rank` singular vectors of the gradient, at the first update and anew after every `update_proj_gap`.
    The shorter axis is projected, of a square matrix that of the rows; with `proj_type="reverse_std"` the other one.
    m and v, which have `rank` rows or columns, are not turned when P changes. The singular vectors have the sign with
    which their greatest element is positive. Arrays that are not matrices are updated by Adam. The rank is at most the
    shorter axis.

    `variant="optax"`: the longer axis is projected, of a square matrix that of the rows, and with "reverse_std" the
    other one; epsilon is added to the root of the corrected v; p <- p (1 - lr weight_decay) - r scale P n.

    Args:
        beta_1: the decay of `momentum`, the average of projected gradients.
        beta_2: the decay of `velocity`, the average of their squares.
        epsilon: a constant added to the denominator, so that it is not 0.
        rank: the number of directions, at least 1.
        update_proj_gap: the number of updates from one projection to the next.
        scale: a factor of the steps of matrices.
        proj_type: "std": the axis named above; "reverse_std": the other one.
    """

    variants: ClassVar = ("authors", "optax")
    grain: ClassVar = "matrix"
    complex_ok: ClassVar = False

    learning_rate: Rate = 1e-3
    beta_1: Decay = 0.9
    beta_2: Decay = 0.999
    epsilon: Amount = 1e-6
    rank: Annotated[int, Within(1)] = 128
    update_proj_gap: Annotated[int, Within(1)] = 200
    scale: Amount = 0.25
    proj_type: Literal["std", "reverse_std"] = "std"

    class State(NamedTuple):
        momentum: Signed
        velocity: NonNegative
        projector: Exact | None = None

    def axis(self, shape: tuple[int, ...]) -> int | None:
        """Return the axis that is projected; None: none is."""
        if len(shape) != 2 or 0 in shape:
            return None
        rows, columns = shape
        axis = int(rows < columns) if self.variant == "optax" else int(rows > columns)
        return axis if self.proj_type == "std" else 1 - axis

    def kinds(self, p: Array) -> dict[str, Slot]:
        axis, slots = self.axis(p.shape), self.slots()
        if axis is None:
            return slots
        resized = {"momentum": axis, "velocity": axis, "projector": 1 - axis}
        return slots | {name: slots[name]._replace(resized=(i,)) for name, i in resized.items()}

    def init(self, p: Array) -> Any:
        zeros, axis = jnp.zeros_like(p), self.axis(p.shape)
        if axis is None:
            return self.State(zeros, zeros)
        small, projector = (self.resized(zeros, i) for i in (axis, 1 - axis))
        return self.State(small, small, projector)

    def resized(self, x: Array, axis: int) -> Array:
        """Return zeros of the shape of a matrix in which an axis is `rank` long."""
        shape = [min(self.rank, *x.shape) if i == axis else n for i, n in enumerate(x.shape)]
        return jnp.broadcast_to(x.sum(axis, keepdims=True), shape)

    def about(self, p: Any) -> str:
        return f"rank {min(self.rank, *p.shape)}" if self.axis(p.shape) is not None else "Adam"

    def decoupled(self, weight_decay: Any) -> Any:
        return weight_decay if self.variant == "optax" else None

    def directions(self, g: Array, axis: int, at: Clock) -> Array:
        """Return a new projector for a gradient."""
        rank = min(self.rank, *g.shape)
        is_finite = jnp.all(jnp.isfinite(g))  # of other numbers LAPACK's search may find no end
        left, _, right = jnp.linalg.svd(gathered(jnp.where(is_finite, g, 0)), full_matrices=False)
        vectors = right[:rank].T if axis else left[:, :rank]
        greatest = jnp.take_along_axis(vectors, jnp.argmax(jnp.abs(vectors), 0)[None], 0)
        vectors = jnp.where(is_finite, jnp.where(greatest < 0, -vectors, vectors), jnp.nan)
        return vectors.T if axis else vectors

    def update(self, g: Array, p: Array, s: Any, at: Clock) -> tuple[Array, Any]:
        g, axis, projector = squarable(g, g.size), self.axis(g.shape), s.projector
        if axis is not None:
            # Singular vectors of equal values have no derivative.
            found = lambda: placed_as(self.directions(jax.lax.stop_gradient(g), axis, at), s.projector)
            projector = jax.lax.cond((at.t - 1) % self.update_proj_gap == 0, found, lambda: s.projector)
        h = g
        if axis is not None:
            h = product(g, projector.T, s.momentum) if axis else product(projector.T, g, s.momentum)
        m, v = ema(s.momentum, h, self.beta_1), ema(s.velocity, square(h), self.beta_2)
        corrections = 1 - self.beta_1**at.t, 1 - self.beta_2**at.t
        rate = at.lr * jnp.sqrt(corrections[1]) / corrections[0]
        epsilon = self.epsilon * (jnp.sqrt(corrections[1]) if self.variant == "optax" else 1)
        u, own = self.whole(m / (root(v) + epsilon), h, g, projector, s, at)
        step = -rate * u
        if at.weight_decay is not None and self.variant != "optax":
            step = step - at.lr * at.weight_decay * (p + step)
        return step, s._replace(momentum=m, velocity=v, projector=projector, **own)

    def whole(self, n: Array, h: Array, g: Array, projector: Any, s: Any, at: Clock) -> tuple[Array, dict[str, Any]]:
        """Return the direction of the array from that of the projected one, and slots beside those of Adam."""
        axis = self.axis(g.shape)
        if axis is None:
            return n, {}
        return self.scale * (product(n, projector, g) if axis else product(projector, n, g)), {}
