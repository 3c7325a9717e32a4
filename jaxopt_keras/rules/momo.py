"""MoMo: momentum whose rate adapts to a model of the loss."""

from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import ema, squarable, square
from jaxopt_keras.language.rule import Clock, Decay, Number, Rate, Rule, Signed


class MoMo(Rule):
    """MoMo (Schaipp et al. 2023, arXiv:2305.07583): momentum with an adaptive rate. A step must be given the loss f.

        m <- beta m + (1 - beta) g              from the first g
        F <- beta F + (1 - beta) f              from the first f
        C <- beta C + (1 - beta) A              from the first A, the sum of g p over all arrays
        N = norm(m)², and B: the sum of m p, over all arrays
        w = 1 + lr weight_decay
        r = min(lr, max(w (F - L - C) + B, 0) / N)      0 where N is below 1.2e-7 (float32)
        p <- p - lr weight_decay / w p - r m

    L is `lower_bound`. With `adapt_lower_bound` it starts there and follows the loss:

        L <- max((F - C + B / w) / 2, lower_bound)              where w (F - C) + B < w L
        L <- max(F + B - C - r N / 2, lower_bound)              after the step

    Args:
        beta: the decay of the averages.
        lower_bound: a lower bound of the loss; 0 where a model can fit all data.
        adapt_lower_bound: estimate the lower bound.
    """

    variants: ClassVar = ("optax",)
    takes: ClassVar = ("loss",)
    complex_ok: ClassVar = False

    learning_rate: Rate = 1.0
    beta: Decay = 0.9
    lower_bound: Number = 0.0
    adapt_lower_bound: bool = False

    class State(NamedTuple):
        momentum: Signed

    class Scalars(NamedTuple):
        loss: Any  # F
        product: Any  # C
        bound: Any | None  # L
        rate: Any  # r

    class Sums(NamedTuple):
        product: Array  # A
        squares: Array  # N
        inner: Array  # B

    def scalars(self) -> Scalars:
        return self.Scalars(0.0, 0.0, self.lower_bound if self.adapt_lower_bound else None, 0.0)

    def average(self, old: Any, new: Any, at: Clock) -> Array:
        return jnp.where(at.t == 1, new, ema(old, new, self.beta))

    def share(self, g: Array, p: Array, s: State, at: Clock) -> Sums:
        g = squarable(g)
        m = self.average(s.momentum, g, at)
        return self.Sums(jnp.sum(g * p), jnp.sum(square(m)), jnp.sum(m * p))

    def advance(self, scalars: Scalars, at: Clock) -> Scalars:
        sums = at.sums
        loss, product = self.average(scalars.loss, at.loss, at), self.average(scalars.product, sums.product, at)
        w, bound = 1 + at.lr * (0 if at.weight_decay is None else at.weight_decay), scalars.bound
        low = self.lower_bound if bound is None else bound
        if bound is not None:
            cap = w * (loss - product) + sums.inner
            low = jnp.where(cap < w * bound, jnp.maximum(cap / (2 * w), self.lower_bound), bound)
        usable = ~(sums.squares <= jnp.finfo(sums.squares.dtype).eps)  # NaN: it shows
        found = jnp.maximum(w * (loss - low - product) + sums.inner, 0) / jnp.where(usable, sums.squares, 1)
        rate = jnp.minimum(at.lr, jnp.where(usable, found, 0))
        if bound is not None:
            low = jnp.maximum(loss + sums.inner - product - rate * sums.squares / 2, self.lower_bound)
        return self.Scalars(loss, product, None if bound is None else low, rate)

    def decoupled(self, weight_decay: Any) -> None:
        return None

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        m = self.average(s.momentum, squarable(g), at)
        step = -at.scalars.rate * m
        if at.weight_decay is not None:
            decay = at.lr * at.weight_decay
            step = step - decay / (1 + decay) * p
        return step, self.State(m)
