"""Cautious weight decay: no element decays that its step moves away from zero."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.clock import Clock
from jaxopt_keras.language.hyperparameters import schedules_of
from jaxopt_keras.language.modifier import Modifier
from jaxopt_keras.language.nested import Both


class CautiousDecay(Modifier):
    """Cautious weight decay (Chen et al. 2025, arXiv:2510.12402), around a rule with decoupled weight decay.

        u = the step of the rule inside
        a = 1 where u p <= 0, else 0
        p <- p + u - lr weight_decay a p

    Raises:
        ValueError: for a rule that applies its weight decay itself.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner.bind(dict.fromkeys(schedules_of(self.inner), 0.5)).decoupled(1.0) is None:
            raise ValueError(
                f"`inner` of CautiousDecay must be a rule with decoupled weight decay. Received: {self.inner!r}, which "
                "applies the decay in its own equations."
            )

    def decoupled(self, weight_decay: Any) -> None:
        return None

    def update(self, g: Array, p: Array, s: Both, at: Clock) -> tuple[Array, Both]:
        step, s = self.within(g, p, s, at)
        decay = self.inner.decoupled(at.weight_decay)
        if decay is not None:
            step = step - jnp.where((step * p.conj()).real <= 0, at.lr * decay * p, 0)
        return step, s
