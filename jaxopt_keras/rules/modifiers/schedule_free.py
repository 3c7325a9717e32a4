"""Schedule-free training: an average of iterates in the place of a schedule, around any rule."""

from typing import Annotated, Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.clock import Clock
from jaxopt_keras.language.fields import COMPLEMENT, Amount, Within
from jaxopt_keras.language.modifier import Modifier
from jaxopt_keras.language.nested import Both
from jaxopt_keras.language.numerics import ema
from jaxopt_keras.language.rule import Exact


class ScheduleFree(Modifier):
    """Schedule-free training (Defazio et al. 2024, arXiv:2405.15682), around any rule: the authors' wrapper.

        z <- z - lr weight_decay_at_y y
        z <- z - lr weight_decay z              the rule's own decay, if it is decoupled
        z <- z + u                              u: the step of the rule inside at z, for the gradient at y
        M <- max(M, lr)         w = t^r M^weight_lr_power       W <- W + w
        x <- x + w / W (z - x)
        y <- momentum x + (1 - momentum) z

    The parameter is y during training, z is a slot that starts as the parameter, and x, the value to evaluate, is
    `averaged`. While every rate was 0, x stays. The rule inside needs no momentum: `momentum` is in its place.

    x is computed from y and z, so that rounding errors of y accumulate in x: a parameter of 16 bits has
    `master_weights="float32"` by default.

    Args:
        momentum: the weight of x, the average of iterates, in y, the parameter.
        weight_decay_at_y: a weight decay of z that is computed at y.
        r: the power of the step in the weights of the average.
        weight_lr_power: the power of the greatest rate so far in the weights.
    """

    decays: ClassVar = True
    defaults: ClassVar[Any] = property(lambda self: self.inner.defaults | {"master_weights": "float32"})

    momentum: Annotated[float, Within(high=1, above=0), COMPLEMENT] = 0.9
    weight_decay_at_y: Amount = 0.0
    r: Amount = 0.0
    weight_lr_power: Amount = 2.0

    class State(NamedTuple):
        z: Exact

    class Scalars(NamedTuple):
        max_rate: Any
        weight_sum: Any

    def start(self, p: Array) -> State:
        return self.State(p)

    def scalars(self) -> Both:
        return Both(self.Scalars(0.0, 0.0), self.inner.scalars())

    def weight(self, max_rate: Array, at: Clock) -> Array:
        return at.t**self.r * max_rate**self.weight_lr_power

    def advance(self, scalars: Both, at: Clock) -> Both:
        max_rate = jnp.maximum(scalars.own.max_rate, at.lr)
        own = self.Scalars(max_rate, scalars.own.weight_sum + self.weight(max_rate, at))
        return super().advance(scalars, at)._replace(own=own)

    def averaged(self, p: Array, s: Both) -> Array:
        return (p - (1 - self.momentum) * s.own.z) / self.momentum

    def update(self, g: Array, p: Array, s: Both, at: Clock) -> tuple[Array, Both]:
        own, x = at.scalars.own, self.averaged(p, s)
        z = s.own.z - at.lr * self.weight_decay_at_y * p
        step, s = self.within(g, z, s, at)
        z = z + step
        total = jnp.where(own.weight_sum > 0, own.weight_sum, 1)  # the weight is 0 while every rate was 0
        x = x + self.weight(own.max_rate, at) / total * (z - x)
        return ema(x, z, self.momentum) - p, s._replace(own=self.State(z))
