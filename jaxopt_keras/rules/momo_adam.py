"""MoMo-Adam: Adam whose rate adapts to a model of the loss."""

from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import ema, root, squarable, square
from jaxopt_keras.language.rule import Amount, Clock, Decay, NonNegative, Number, Rate, Rule, Signed
from jaxopt_keras.rules.momo import MoMo


class MoMoAdam(Rule):
    """MoMo-Adam (Schaipp et al. 2023, arXiv:2305.07583): Adam with an adaptive rate. A step must be given the loss f.

        m <- beta_1 m + (1 - beta_1) g          v <- beta_2 v + (1 - beta_2) g²
        F <- beta_1 F + (1 - beta_1) f          C <- beta_1 C + (1 - beta_1) A,  A: the sum of g p over all arrays
        u = m / (sqrt(v / (1 - beta_2^t)) + epsilon)
        N and B: the sums of m u and of m p over all arrays
        c = 1 - beta_1^t,  w = 1 + lr weight_decay
        r = min(lr / c, max(w (F - c L - C) + B, 0) / N)    0 where N is below 1.2e-7 (float32)
        p <- p - lr weight_decay / w p - r u

    L is `lower_bound`. With `adapt_lower_bound` it starts there and follows the loss:

        L <- max((F - C + B / w) / (2 c), lower_bound)          where w (F - C) + B < w c L
        L <- max((F + B - C - r N / 2) / c, lower_bound)        after the step

    Args:
        beta_1: the decay of `momentum`, the average of gradients, and of the averages of the model.
        beta_2: the decay of `velocity`, the average of squared gradients.
        epsilon: a constant added to the denominator, so that it is not 0.
        lower_bound: a lower bound of the loss; 0 where a model can fit all data.
        adapt_lower_bound: estimate the lower bound.
    """

    variants: ClassVar = ("optax",)
    takes: ClassVar = ("loss",)
    complex_ok: ClassVar = False

    learning_rate: Rate = 1e-2
    beta_1: Decay = 0.9
    beta_2: Decay = 0.999
    epsilon: Amount = 1e-8
    lower_bound: Number = 0.0
    adapt_lower_bound: bool = False

    class State(NamedTuple):
        momentum: Signed
        velocity: NonNegative

    Scalars: ClassVar = MoMo.Scalars
    Sums: ClassVar = MoMo.Sums

    def scalars(self) -> MoMo.Scalars:
        return MoMo.Scalars(0.0, 0.0, self.lower_bound if self.adapt_lower_bound else None, 0.0)

    def averages(self, g: Array, s: State, at: Clock) -> tuple[Array, State]:
        """Return u, and the state with new averages."""
        m, v = ema(s.momentum, g, self.beta_1), ema(s.velocity, square(g), self.beta_2)
        return m / (root(v / (1 - self.beta_2**at.t)) + self.epsilon), self.State(m, v)

    def share(self, g: Array, p: Array, s: State, at: Clock) -> MoMo.Sums:
        g = squarable(g)
        u, new = self.averages(g, s, at)
        return MoMo.Sums(jnp.sum(g * p), jnp.sum(new.momentum * u), jnp.sum(new.momentum * p))

    def advance(self, scalars: MoMo.Scalars, at: Clock) -> MoMo.Scalars:
        sums, c = at.sums, 1 - self.beta_1**at.t
        loss, product = (
            ema(old, new, self.beta_1) for old, new in ((scalars.loss, at.loss), (scalars.product, sums.product))
        )
        w, bound = 1 + at.lr * (0 if at.weight_decay is None else at.weight_decay), scalars.bound
        low = self.lower_bound if bound is None else bound
        if bound is not None:
            cap = w * (loss - product) + sums.inner
            low = jnp.where(cap < w * c * bound, jnp.maximum(cap / (2 * c * w), self.lower_bound), bound)
        usable = ~(sums.squares <= jnp.finfo(sums.squares.dtype).eps)  # NaN: it shows
        found = jnp.maximum(w * (loss - c * low - product) + sums.inner, 0) / jnp.where(usable, sums.squares, 1)
        rate = jnp.minimum(at.lr / c, jnp.where(usable, found, 0))
        if bound is not None:
            low = jnp.maximum((loss + sums.inner - product - rate * sums.squares / 2) / c, self.lower_bound)
        return MoMo.Scalars(loss, product, None if bound is None else low, rate)

    def decoupled(self, weight_decay: Any) -> None:
        return None

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        u, new = self.averages(squarable(g), s, at)
        step = -at.scalars.rate * u
        if at.weight_decay is not None:
            decay = at.lr * at.weight_decay
            step = step - decay / (1 + decay) * p
        return step, new
