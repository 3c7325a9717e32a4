"""MADGRAD: dual averaging with the cube root of squared gradients."""

from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import hypot
from jaxopt_keras.language.rule import Amount, Clock, Decay, Exact, Rate, Rule


class MADGRAD(Rule):
    """MADGRAD, "momentumized, adaptive, dual averaged gradient" (Defazio & Jelassi 2021, arXiv:2101.11075).

        g <- g + weight_decay p,  l = (lr + epsilon) sqrt(t)
        s <- s + l g                            q² <- q² + l g²
        z = h - s / ((q²)^{1 / 3} + epsilon)    h is the initial parameter, the slot `start`
        p <- momentum p + (1 - momentum) z

    The paper advises less weight decay than for other optimizers, often none. q, the slot `root`, is kept instead of
    its square, which would overflow. `variant="optax"` is the same.

    Args:
        momentum: the weight of p in the new p.
        epsilon: a constant added to the rate, and to the cube root.
    """

    variants: ClassVar = ("authors", "optax")
    complex_ok: ClassVar = False

    learning_rate: Rate = 0.01
    momentum: Decay = 0.9
    epsilon: Amount = 1e-6

    class State(NamedTuple):
        sum: Exact
        root: Exact
        start: Exact

    def init(self, p: Array) -> State:
        return self.State(jnp.zeros_like(p), jnp.zeros_like(p), p)

    def decoupled(self, weight_decay: Any) -> Any:
        return None

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        if at.weight_decay is not None:
            g = g + at.weight_decay * p
        weight = (at.lr + self.epsilon) * jnp.sqrt(at.t)
        total = s.sum + weight * g
        root = hypot(s.root, jnp.sqrt(weight) * g)
        z = s.start - total / (jnp.cbrt(root) ** 2 + self.epsilon)
        return (1 - self.momentum) * (z - p), self.State(total, root, s.start)
