"""A rate that falls when the loss has stopped falling."""

from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.clock import Clock
from jaxopt_keras.language.fields import Amount, Within
from jaxopt_keras.language.modifier import Modifier
from jaxopt_keras.language.nested import Both

GREATEST = float(jnp.finfo(jnp.float32).max)


class ReduceOnPlateau(Modifier):
    """A rate that falls when the loss stops falling, around any rule: optax's `reduce_on_plateau`, for every step.

        f = the mean loss of the last `accumulation_size` updates
        f < (1 - rtol) best - atol:  best <- f,  n <- 0         else n <- n + 1
        n = patience:  scale <- max(factor scale, min_scale),  n <- 0
        lr <- scale lr                                          scale starts at 1
        p <- p + u                                              u: the step of the rule inside at this rate

    Every step must be given the loss, by `step(..., value=f)`, or in the stateful face by
    `apply_gradients(..., loss=f)`; `minimize` passes it. The loss of one batch is noisy: set `accumulation_size` to the
    updates of an epoch. A loss of NaN is no progress. The scale is `state.scalars["scale"]`. In `fit`, Keras's callback
    `ReduceLROnPlateau` works too.

    Args:
        factor: the factor of the rate.
        patience: the number of means without progress after which the rate falls.
        rtol: the least relative progress.
        atol: the least absolute progress.
        cooldown: the number of means after a fall that do not count.
        accumulation_size: the number of updates whose losses are averaged.
        min_scale: the least scale of the rate.
    """

    decays: ClassVar = True
    takes: ClassVar[Any] = property(lambda self: tuple({"loss": 0} | dict.fromkeys(self.inner.takes)))
    keeps_steps: ClassVar = True

    factor: Annotated[float, Within(0, 1)] = 0.1
    patience: Annotated[int, Within(1)] = 10
    rtol: Annotated[float, Within(0, 1)] = 1e-4
    atol: Amount = 0.0
    cooldown: Annotated[int, Within(0)] = 0
    accumulation_size: Annotated[int, Within(1)] = 1
    min_scale: Annotated[float, Within(0, 1)] = 0.0

    class Scalars(NamedTuple):
        scale: Any
        best: Any
        bad: Any  # means without progress
        resting: Any  # means that still do not count
        seen: Any  # losses of the present mean
        loss: Any  # their mean

    def scalars(self) -> Both:
        return Both(self.Scalars(1.0, GREATEST, 0.0, 0.0, 0.0, 0.0), self.inner.scalars())

    def following(self, own: Scalars, loss: Array) -> Scalars:
        """Return the modifier's scalars after one more loss."""
        seen = own.seen + 1
        mean = own.loss + (loss - own.loss) / seen
        improves = mean < (1 - self.rtol) * own.best - self.atol
        rests = own.resting > 0
        bad = jnp.where(rests | improves, 0, own.bad + 1)
        falls = bad >= self.patience
        after = self.Scalars(
            scale=jnp.where(falls, jnp.maximum(own.scale * self.factor, self.min_scale), own.scale),
            best=jnp.where(improves, mean, own.best),
            bad=jnp.where(falls, 0, bad),
            resting=jnp.where(rests, own.resting - 1, jnp.where(falls, self.cooldown, 0)),
            seen=jnp.zeros_like(seen),
            loss=jnp.zeros_like(mean),
        )
        whole = seen >= self.accumulation_size
        return jax.tree.map(lambda new, old: jnp.where(whole, new, old), after, own._replace(seen=seen, loss=mean))

    def share(self, g: Array, p: Array, s: Both, at: Clock) -> Both:
        scale = self.following(at.scalars.own, at.loss).scale
        return super().share(g, p, s, at.at_rate(at.lr * scale))

    def advance(self, scalars: Both, at: Clock) -> Both:
        own = self.following(scalars.own, at.loss)
        return super().advance(scalars, at.at_rate(at.lr * own.scale))._replace(own=own)

    def update(self, g: Array, p: Array, s: Both, at: Clock) -> tuple[Array, Both]:
        return self.within(g, p, s, at.at_rate(at.lr * at.scalars.own.scale))
