"""The clock of a rule that runs on one whole array."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.engine.core import Now
from jaxopt_keras.language import numerics


class At(NamedTuple):
    """The clock of a rule that runs on one whole array."""

    t: Array
    lr: Any
    weight_decay: Any
    scalars: Any
    before: Any = None
    sums: Any = None
    loss: Any = None
    key: Any = None
    second: Any = None

    @classmethod
    def of(cls, now: Now, scalars: Any, before: Any = None, sums: Any = None) -> "At":
        return cls(now.t, now.lr, now.weight_decay, scalars, before, sums, now.loss)

    def inside(self) -> "At":
        parts = (None if x is None else x.inner for x in (self.scalars, self.before, self.sums))
        return self._replace(**dict(zip(("scalars", "before", "sums"), parts, strict=True)))

    def at_rate(self, lr: Any) -> "At":
        return self._replace(lr=lr)

    def without_decay(self) -> "At":
        return self._replace(weight_decay=None)

    def norm(self, x: Array) -> Array:
        return numerics.norm(x)

    def rms(self, x: Array) -> Array:
        return numerics.rms(x)

    def sum(self, x: Array) -> Array:
        return jnp.sum(x)

    def mean(self, x: Array) -> Array:
        return jnp.sum(x) / max(x.size, 1)
