"""Sophia-G: momentum divided by an estimate of the curvature, which a second gradient gives now and then."""

from typing import Annotated, Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.numerics import ema, squarable, square
from jaxopt_keras.language.rule import Amount, Clock, Decay, NonNegative, Rate, Rule, Signed, Within
from jaxopt_keras.language.second import Looking


class SophiaG(Looking, Rule):
    """Sophia-G (Liu et al. 2023, arXiv:2305.14342), with the Gauss-Newton-Bartlett estimate of the curvature.

        every hess_interval updates, from the second on:  h <- beta_2 h + (1 - beta_2) q²
        m <- beta_1 m + (1 - beta_1) g
        p <- p (1 - lr weight_decay) - lr sign(m) min(|m| / (rho bs h + 1e-15), 1)

    q is the gradient at p of the mean loss on labels that are sampled from the model. Until there is a first one, h is
    0 and each element moves by the rate. Every step must be given that loss as a function, beside the gradients g of
    the true loss: `kernel.minimize(loss, params, state, batch, key, second=sampled)`, `kernel.step(params, state,
    grads, value_fn=sampled)`, or in the stateful face `minimize(loss, variables, second=sampled)`. If the true loss is
    given in its place, h is that of the empirical Fisher matrix.

    Args:
        beta_1: the decay of `momentum`, the average of gradients.
        beta_2: the decay of `hessian`, the average of squared second gradients.
        rho: the scale of the curvature: the greater, the fewer elements are clipped. Of m / (rho bs h) the authors want
            10 to 50 % below 1.
        bs: the number of labels in a batch (samples times length), of which the losses are means.
        hess_interval: the number of updates from one second gradient to the next.
    """

    variants: ClassVar = ("authors",)
    complex_ok: ClassVar = False
    defaults: ClassVar = {"weight_decay": 0.1}

    learning_rate: Rate = 1e-4
    beta_1: Decay = 0.965
    beta_2: Decay = 0.99
    rho: Amount = 0.04
    bs: Amount = 5120.0
    hess_interval: Annotated[int, Within(1)] = 10

    class State(NamedTuple):
        momentum: Signed
        hessian: NonNegative

    def looks(self, at: Clock) -> Any:
        return ((at.t - 1) % self.hess_interval == 0) & (at.t > 1)

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        m = ema(s.momentum, squarable(g), self.beta_1)
        h = jnp.where(self.looks(at), ema(s.hessian, square(squarable(at.second)), self.beta_2), s.hessian)
        u = jnp.sign(m) * jnp.minimum(jnp.abs(m) / (self.rho * self.bs * h + 1e-15), 1)
        return -at.lr * u, self.State(m, h)
