"""Vmapped equals looped: a batch of trainings is that many trainings, each at its own rate if rates are injected.

Ensembles and sweeps run so. A rule that asked for a concrete value, a condition on a batched number, or a norm over the
batch axis would break it.
"""

import jax
import jax.numpy as jnp

from tests.laws.cases import RATE, assert_close, every_rule, gradients, parameters, run

STEPS = 2
RATES = [RATE, 2 * RATE, 0.0]


@every_rule
def test_vmapped_equals_looped(case):
    batch = [jax.tree.map(lambda x, i=i: x * (1 + i), parameters()) for i in range(len(RATES))]
    grads = [[jax.tree.map(lambda x, i=i: x - i, g) for g in gradients(STEPS)] for i in range(len(RATES))]
    expected = [run(case.kernel(rate), p, g) for rate, p, g in zip(RATES, batch, grads, strict=True)]

    stack = lambda *trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)
    kernel = lambda rate: case.kernel(rate, inject_hyperparams="learning_rate")
    state = jax.jit(jax.vmap(lambda rate, p: kernel(rate).init(p)))(jnp.asarray(RATES), stack(*batch))
    step, batched = jax.jit(jax.vmap(kernel(RATE).step)), (stack(*batch), state)
    for g in zip(*grads, strict=True):
        batched = step(*batched, stack(*g))
    params, state = batched
    assert state.hyperparams["learning_rate"].tolist() == RATES
    for i, one in enumerate(expected):
        found = params, state._replace(hyperparams={})
        assert_close(jax.tree.map(lambda x, i=i: x[i], found), one, STEPS)
