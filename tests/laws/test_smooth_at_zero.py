"""Meta-learning differentiates a step; zero gradients, of dead units and unused rows, must not give NaN."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.laws.cases import CASES

NEAR = 1e-30  # far below every epsilon
FINITE = set(
    "AdaBelief AdEMAMix ADOPT Adadelta Adafactor Adagrad Adam AdamW Adamax Adan Ftrl Grams LaProp Lamb Lion Muon Nadam "
    "RAdam RMSprop SGD ScheduleFreeAdamW Signum StableAdamW Yogi".split()
)
SMOOTH = {"SGD", "Adam", "AdamW", "Nadam", "RMSprop", "Adagrad", "ScheduleFreeAdamW"}  # in every gradient, at zero


def moved(case, p, write):
    """The sum of the new parameters, weighted, as a function of parameters and gradients."""
    kernel = case.kernel(engine="xla")
    state, weights = kernel.init(p), jnp.arange(1.0, 1 + p.size).reshape(p.shape)

    def f(p, g):
        new = kernel.step(p, state, g)[0] if write else p + kernel.update(g, state, p)[0]
        return jnp.sum(weights * new)

    return f


@pytest.mark.parametrize("write", [True, False], ids=["step", "update"])
@pytest.mark.parametrize("case", [case for case in CASES if type(case.rule).__name__ in FINITE], ids=str)
def test_the_derivative_is_finite(case, write):
    p = jnp.array([[1.0, -2.0], [0.5, 3.0]])
    by_p, by_g = jax.jit(jax.grad(moved(case, p, write), argnums=(0, 1)))(p, jnp.zeros((2, 2)))
    assert np.all(np.isfinite(by_p)) and np.all(np.isfinite(by_g))


@pytest.mark.parametrize("case", [case for case in CASES if type(case.rule).__name__ in SMOOTH], ids=str)
def test_it_is_that_of_differences(case, x64):
    f = jax.jit(functools.partial(moved(case, jnp.zeros(4), True), jnp.zeros(4)))  # no digits are lost beside a zero
    found = jax.jit(jax.grad(f))(jnp.zeros(4))
    differences = [(f(g) - f(-g)) / (2 * NEAR) for g in NEAR * jnp.eye(4)]
    np.testing.assert_allclose(found, differences, rtol=1e-6)
