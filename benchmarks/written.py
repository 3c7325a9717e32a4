"""A class as people write it for Keras 3, whose step is compared with that of a rule with the same arithmetic."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

import jaxopt_keras as jk


class WrittenAdam(jk.Optimizer):
    """Adam, with optax's formula."""

    def __init__(
        self, beta_1: float, beta_2: float, epsilon: float, amsgrad: bool, eps_root: float, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        assert not amsgrad and not eps_root  # this class has neither
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon

    def build(self, variables: Sequence[Any]) -> None:
        super().build(variables)
        self.m = [self.add_variable_from_reference(v, "m") for v in variables]
        self.v = [self.add_variable_from_reference(v, "v") for v in variables]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        i, t = self._get_variable_index(variable), self.iterations.value.astype(gradient.dtype) + 1
        m, v = self.m[i], self.v[i]
        m.assign_add((gradient - m.value) * (1 - self.beta_1))
        v.assign_add((jnp.square(gradient) - v.value) * (1 - self.beta_2))
        size = jnp.sqrt(v.value / (1 - self.beta_2**t)) + self.epsilon
        variable.assign_sub(learning_rate * (m.value / (1 - self.beta_1**t)) / size)
