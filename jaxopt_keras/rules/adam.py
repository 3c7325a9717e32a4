"""Adam: adaptive moment estimation."""

from dataclasses import field
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import ema, root, squarable, square
from jaxopt_keras.language.rule import Amount, Clock, Decay, EpsRoot, Exact, KerasOrder, NonNegative, Rate, Rule, Signed


class Adam(Rule):
    """Adam, with the optional AMSGrad maximum.

        m <- beta_1 m + (1 - beta_1) g          v <- beta_2 v + (1 - beta_2) g²
        amsgrad: h <- max(h, v), instead of v below
        p <- p - lr sqrt(1 - beta_2^t) / (1 - beta_1^t) m / (sqrt(v) + epsilon)

    Kingma & Ba 2014, arXiv:1412.6980, with the "epsilon hat" of its section 2; AMSGrad: Reddi et al. 2018,
    arXiv:1904.09237. `variant="optax"` is the paper's Algorithm 1: epsilon joins the bias-corrected sqrt(v / (1 -
    beta_2^t)), and AMSGrad's maximum is over bias-corrected values.

    Args:
        beta_1: the decay of `momentum`, the average of gradients.
        beta_2: the decay of `velocity`, the average of squared gradients.
        epsilon: a constant added to the denominator, so that it is not 0.
        amsgrad: divide by the greatest `velocity` so far, the slot `velocity_hat`.
        eps_root: a constant added to the bias-corrected `velocity`, under the root.
    """

    keras: ClassVar = KerasOrder(slot_groups=(("momentum", "velocity"), ("velocity_hat",)))

    learning_rate: Rate = 1e-3
    beta_1: Decay = 0.9
    beta_2: Decay = 0.999
    epsilon: Amount = 1e-7
    amsgrad: bool = False
    eps_root: EpsRoot = field(default=0.0, kw_only=True)

    class State(NamedTuple):
        momentum: Signed
        velocity: NonNegative
        velocity_hat: Exact | None = None  # a maximum: stochastic rounding would raise it

    def init(self, p: Array) -> State:
        zeros = jnp.zeros_like(p.real)
        return self.State(jnp.zeros_like(p), zeros, zeros if self.amsgrad else None)

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        g = squarable(g)
        m = ema(s.momentum, g, self.beta_1)
        v = ema(s.velocity, square(g), self.beta_2)
        correction = 1 - self.beta_2**at.t
        rate = at.lr * jnp.sqrt(correction) / (1 - self.beta_1**at.t)
        epsilon = self.epsilon * jnp.sqrt(correction) if self.variant == "optax" else self.epsilon
        peak, h = v, s.velocity_hat
        if h is not None and self.variant == "optax":
            h = jnp.maximum(h, v / correction)
            peak = h * correction
        elif h is not None:
            peak = h = jnp.maximum(h, v)
        step = -rate * m / (root(peak + self.eps_root * correction) + epsilon)
        return step, self.State(m, v, h)
