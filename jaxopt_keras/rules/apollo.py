"""APOLLO: gradients scaled as Adam scales a random projection of them."""

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import normal, root, square
from jaxopt_keras.language.rule import Amount, Clock, Exact, NonNegative, Signed, Slot, Within
from jaxopt_keras.rules.galore import GaLore

GROWTH = 1.01  # the greatest ratio of the norms of two steps


class APOLLO(GaLore):
    """APOLLO (Zhu et al. 2024, arXiv:2412.05270): scales gradients, as Adam scales a projection of them.

        h = Pᵀ g                                or h = g P
        m <- beta_1 m + (1 - beta_1) h          v <- beta_2 v + (1 - beta_2) h²
        n = m / (sqrt(v) + epsilon),  u = g |n| / (|h| + 1e-8)
        u <- u min(1, 1.01 q / |u|),  q <- |u|  q is the norm of the last step
        r = lr sqrt(1 - beta_2^t) / (1 - beta_1^t),  p <- (p - r sqrt(scale) u) (1 - lr weight_decay)

    P has normal numbers of variance 1 / rank, drawn from the option `seed` at the first update and anew after every
    `update_proj_gap`. The shorter axis is projected, of a square matrix that of the rows. |n| and |h| are norms over
    the projected axis, one for each row or column (`scale_type="channel"`), or over the array ("tensor"). Arrays that
    are not matrices are updated by Adam. A step of 0 does not count as the last step, where the release would then take
    very small ones. APOLLO-Mini is rank=1, scale=128.0, scale_type="tensor".

    Args:
        rank: the number of directions, at least 1; at most the shorter axis.
        scale: the square of a factor of the steps of matrices.
        scale_type: whether each row or column has its scale, "channel", or the array one, "tensor".
        proj: directions at "random", or the singular vectors of the gradient, "svd", as in `GaLore`.
        scale_front: scale steps before the limit of their growth, which is then of the scaled ones.
        disable_nl: do not limit the growth of the norm of steps.
    """

    variants: ClassVar = ("authors",)
    takes: ClassVar = ("key",)

    rank: Annotated[int, Within(1)] = 256
    scale: Amount = 1.0
    scale_type: Literal["channel", "tensor"] = "channel"
    proj: Literal["random", "svd"] = "random"
    scale_front: bool = False
    disable_nl: bool = False

    class State(NamedTuple):  # pyright: ignore[reportIncompatibleVariableOverride]  # it has a slot more
        momentum: Signed
        velocity: NonNegative
        projector: Exact | None = None
        length: Exact | None = None

    def kinds(self, p: Array) -> dict[str, Slot]:
        return super().kinds(p) | {"length": Slot(nonnegative=True, exact=True, lacks=tuple(range(p.ndim)))}

    def init(self, p: Array) -> Any:
        s = super().init(p)
        is_limited = s.projector is not None and not self.disable_nl
        return s._replace(length=jnp.zeros_like(p).sum()) if is_limited else s

    def directions(self, g: Array, axis: int, at: Clock) -> Array:
        if self.proj == "svd":
            return super().directions(g, axis, at)
        rank = min(self.rank, *g.shape)
        return normal(at.key, (rank, g.shape[1]) if axis else (g.shape[0], rank), g.dtype) / rank**0.5

    def whole(self, n: Array, h: Array, g: Array, projector: Any, s: Any, at: Clock) -> tuple[Array, dict[str, Any]]:
        axis = self.axis(g.shape)
        if axis is None:
            return n, {}
        over = axis if self.scale_type == "channel" else (0, 1)
        length = lambda x: root(jnp.sum(square(x), over, keepdims=True))
        u, factor = g * (length(n) / (length(h) + 1e-8)), root(jnp.asarray(self.scale, g.dtype))
        u = u * factor if self.scale_front else u
        own = {}
        if s.length is not None:
            norm = at.norm(u)
            limit = jnp.maximum(norm / (s.length + 1e-8), GROWTH) / GROWTH
            limit = jnp.where(s.length == 0, 1, limit)
            u, own = u / limit, {"length": jnp.where(norm == 0, s.length, norm / limit)}
        return (u if self.scale_front else u * factor), own
