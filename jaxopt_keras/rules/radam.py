"""RAdam: Adam that waits until its second moment means something."""

from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import ema, hypot
from jaxopt_keras.language.rule import Amount, Clock, Decay, NonNegative, Rate, Rule, Signed


class RAdam(Rule):
    """Rectified Adam (Liu et al. 2019, arXiv:1908.03265), with a warm-up of its own.

        m <- beta_1 m + (1 - beta_1) g          v² <- beta_2 v² + (1 - beta_2) g²
        l = 2 / (1 - beta_2) - 1,  n = l - 2 t beta_2^t / (1 - beta_2^t)
        r = sqrt((n - 4) (n - 2) l / ((l - 4) (l - 2) n))
        p <- p - lr r sqrt(1 - beta_2^t) / (1 - beta_1^t) m / (v + epsilon)  if n is at least 5
        p <- p - lr m / (1 - beta_1^t)  else, with `degenerated_to_sgd`

    n is the number of gradients in the average v²; it is 5 in the sixth update. v, the slot `root`, is kept instead
    of its square, which would overflow. Weight decay is applied in every update; the release omits it where p does
    not move. `variant="optax"`: epsilon joins the bias-corrected root, and the first updates are always those of SGD.

    Args:
        beta_1: the decay of `momentum`, the average of gradients.
        beta_2: the decay of v², the average of squared gradients.
        epsilon: a constant added to the denominator, so that it is not 0.
        degenerated_to_sgd: take steps of SGD in the first updates; otherwise p stays.
    """

    variants: ClassVar = ("authors", "optax")

    learning_rate: Rate = 1e-3
    beta_1: Decay = 0.9
    beta_2: Decay = 0.999
    epsilon: Amount = 1e-8
    degenerated_to_sgd: bool = False

    class State(NamedTuple):
        momentum: Signed
        root: NonNegative

    class Scalars(NamedTuple):
        age: (
            Any  # the mean age of the squares in v²: n is 1 + 2 age. The equation for n has no digits left for large l.
        )

    def scalars(self) -> Scalars:
        return self.Scalars(0.0)

    def advance(self, scalars: Scalars, at: Clock) -> Scalars:
        kept = self.beta_2 * (1 - self.beta_2 ** (at.t - 1)) / (1 - self.beta_2**at.t)
        return self.Scalars(kept * (scalars.age + 1))

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        optax, old, new = self.variant == "optax", 1 - (1 - self.beta_2), 1 - self.beta_2
        m = ema(s.momentum, g, self.beta_1)
        v = hypot(jnp.sqrt(old) * s.root, jnp.sqrt(new) * jnp.abs(g))
        longest, length = 2 / (1 - self.beta_2) - 1, 1 + 2 * at.scalars.age
        is_long = length >= 5
        n = jnp.where(is_long, length, longest)
        r = jnp.sqrt((n - 4) * (n - 2) * longest / ((longest - 4) * (longest - 2) * n))
        root = jnp.sqrt(1 - self.beta_2**at.t)
        mean = m / (1 - self.beta_1**at.t)
        u = r * root * mean / (v + self.epsilon * (root if optax else 1))
        early = mean if optax or self.degenerated_to_sgd else jnp.zeros_like(mean)
        return -at.lr * jnp.where(is_long, u, early), self.State(m, v)
