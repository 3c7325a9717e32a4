"""NovoGrad: Adam with one second moment for each array."""

from typing import Annotated, Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import hypot
from jaxopt_keras.language.rule import Amount, Clock, Decay, Rate, Rule, Signed, Slot


class NovoGrad(Rule):
    """NovoGrad (Ginsburg et al. 2019, arXiv:1905.11286).

        n² <- beta_2 n² + (1 - beta_2) |g|²     n starts as the first |g|; it is one number for each array
        m <- beta_1 m + g / (n + epsilon) + weight_decay p
        p <- p - lr m

    n, the slot `norm`, is kept instead of its square, which would overflow. `variant="optax"` is the same.

    Args:
        beta_1: the decay of `momentum`, the sum of normalized gradients.
        beta_2: the decay of the average of squared norms.
        epsilon: a constant added to the norm, so that it is not 0.
    """

    variants: ClassVar = ("authors", "optax")
    grain: ClassVar = "leaf"

    learning_rate: Rate = 1e-3
    beta_1: Decay = 0.95
    beta_2: Decay = 0.98
    epsilon: Amount = 1e-8

    class State(NamedTuple):
        momentum: Signed
        norm: Annotated[Array, Slot(nonnegative=True, exact=True)]

    def init(self, p: Array) -> State:
        return self.State(jnp.zeros_like(p), jnp.zeros((), p.real.dtype))

    def kinds(self, p: Array) -> dict[str, Slot]:
        return self.slots() | {"norm": Slot(nonnegative=True, exact=True, lacks=tuple(range(p.ndim)))}

    def decoupled(self, weight_decay: Any) -> Any:
        return None

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        old, new = 1 - (1 - self.beta_2), 1 - self.beta_2
        found = at.norm(g)
        n = jnp.where(at.t == 1, found, hypot(jnp.sqrt(old) * s.norm, jnp.sqrt(new) * found))
        u = g / (n + self.epsilon)
        if at.weight_decay is not None:
            u = u + at.weight_decay * p
        m = self.beta_1 * s.momentum + u
        return -at.lr * m, self.State(m, n)
