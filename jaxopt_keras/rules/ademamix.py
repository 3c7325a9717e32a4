"""AdEMAMix: Adam with a second momentum that remembers ten thousand gradients."""

import math
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import ema, root, squarable, square
from jaxopt_keras.language.rule import Amount, Clock, Count, Decay, NonNegative, Rate, Rule, Signed


class AdEMAMix(Rule):
    """AdEMAMix (Pagliardini, Ablin & Grangier 2024, arXiv:2409.03137).

        m <- beta_1 m + (1 - beta_1) g          v <- beta_2 v + (1 - beta_2) g²
        s <- b s + (1 - b) g                    s is the slot `slow_momentum`; its bias is not corrected
        u = (m / (1 - beta_1^t) + a s) / (sqrt(v / (1 - beta_2^t)) + epsilon)
        p <- p - lr u

    a grows linearly from 0 to alpha in `alpha_warmup` updates, and the half-life of b linearly from that of beta_1 to
    that of beta_3 in `beta3_warmup` updates. Both are meant for a whole training: a large b needs a long one.
    `variant="optax"` is the same.

    Args:
        beta_1: the decay of `momentum`, the average of gradients.
        beta_2: the decay of `velocity`, the average of squared gradients.
        beta_3: the decay of `slow_momentum`.
        alpha: the weight of `slow_momentum`; the paper's experiments use 5 to 10.
        beta3_warmup: the number of updates in which b grows. None: b is beta_3.
        alpha_warmup: the number of updates in which a grows. None: a is alpha.
        epsilon: a constant added to the denominator, so that it is not 0.
    """

    variants: ClassVar = ("authors", "optax")

    learning_rate: Rate = 1e-3
    beta_1: Decay = 0.9
    beta_2: Decay = 0.999
    beta_3: Decay = 0.9999
    alpha: Amount = 2.0
    beta3_warmup: Count | None = None
    alpha_warmup: Count | None = None
    epsilon: Amount = 1e-8

    class State(NamedTuple):
        momentum: Signed
        slow_momentum: Signed
        velocity: NonNegative

    def forgetting(self, t: Array) -> Any:
        """Return 1 - b."""
        if not self.beta3_warmup:
            return 1 - self.beta_3
        a = jnp.minimum(t / self.beta3_warmup, 1)
        # The release adds 1e-8 to a decay before the logarithm.
        lives = [math.log(0.5) / jnp.log1p(1e-8 - (1 - b)) - 1 for b in (self.beta_1, self.beta_3)]
        life = (1 - a) * lives[0] + a * lives[1]
        return jnp.where(a < 1, -jnp.expm1(math.log(0.5) / (life + 1)), 1 - self.beta_3)

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        g = squarable(g)
        m = ema(s.momentum, g, self.beta_1)
        slow = s.slow_momentum + self.forgetting(at.t) * (g - s.slow_momentum)
        v = ema(s.velocity, square(g), self.beta_2)
        alpha = self.alpha * jnp.minimum(at.t / self.alpha_warmup, 1) if self.alpha_warmup else self.alpha
        u = m / (1 - self.beta_1**at.t) + alpha * slow
        u = u / (root(v / (1 - self.beta_2**at.t)) + self.epsilon)
        return -at.lr * u, self.State(m, slow, v)
