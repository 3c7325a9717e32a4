"""COCOB: coin betting, without a rate."""

from typing import Annotated, Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.rule import Amount, Clock, Exact, Rate, Rule, Slot

Sum = Annotated[Array, Slot(nonnegative=True, exact=True)]


class COCOB(Rule):
    """COCOB-Backprop, "continuous coin betting" (Orabona & Tommasi 2017, arXiv:1705.07795), in optax's form.

        g <- lr (g + weight_decay p)
        L <- max(L, |g|)                        from epsilon
        G <- G + |g|                            from 0
        R <- max(R - g (p - p_0), 0)            from 0
        S <- S - g                              from 0
        p <- p_0 + S / L (L + R) / max(G + L, alpha L)

    p_0 is the initial parameter. There is no rate: `learning_rate` is a factor of gradients, which has little effect
    while it is constant.

    Args:
        learning_rate: a factor of gradients: a number, or a schedule, which is a function of the step.
        alpha: the greatest share of the wealth that is bet, as its reciprocal: greater is slower at the start.
        epsilon: the first scale of gradients, so that it is not 0.
    """

    variants: ClassVar = ("optax",)
    complex_ok: ClassVar = False

    learning_rate: Rate = 1.0
    alpha: Amount = 100.0
    epsilon: Amount = 1e-8

    class State(NamedTuple):
        start: Exact
        scale: Sum
        absolute: Sum
        reward: Sum
        total: Exact

    def init(self, p: Array) -> State:
        zeros, least = jnp.zeros_like(p), jnp.full_like(p, self.epsilon)
        return self.State(p, least, zeros, zeros, zeros)

    def decoupled(self, weight_decay: Any) -> None:
        return None

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        g = at.lr * (g if at.weight_decay is None else g + at.weight_decay * p)
        scale, absolute = jnp.maximum(s.scale, jnp.abs(g)), s.absolute + jnp.abs(g)
        reward, total = jnp.maximum(s.reward - g * (p - s.start), 0), s.total - g
        unit = jnp.where(scale > 0, scale, 1)  # it is 0 with an epsilon of 0, before the first gradient
        bet = (1 + reward / unit) / jnp.maximum(absolute / unit + 1, self.alpha)
        return s.start + total / unit * bet - p, self.State(s.start, scale, absolute, reward, total)
