"""Update, then add, equals step: the optax view and ours are one optimizer.

A training loop written for optax calls `update` and adds the result to the parameters; one written for this library
calls `step`. Both must be able to take over each other's training.
"""

import jax
import jax.numpy as jnp
import pytest

from tests.laws.cases import (
    AWKWARD,
    assert_close,
    assert_same_bits,
    few_cases,
    gradients,
    kinds,
    parameters,
    run,
)


def add(params, updates):
    """As `optax.apply_updates`: the sum in the wider dtype, rounded once."""
    return jax.tree.map(lambda p, u: (p.astype(u.dtype) + u).astype(p.dtype), params, updates)


def updated(kernel, params, grads):
    state = kernel.init(params)
    for g in grads:
        updates, state = kernel.update(g, state, params, full_precision=True)
        params = add(params, updates)
    return params, state


@kinds
def test_update_and_add_equals_step(case):
    kernel, params, grads = case.kernel(), parameters(), gradients(3)
    actual, expected = updated(kernel, params, grads), run(kernel, params, grads)
    if case.rule.grain == "element":
        assert_same_bits(actual, expected)
    else:  # XLA may add up a norm in another order
        assert_close(actual, expected, 3)


@few_cases
def test_awkward_trees(case):
    kernel, params, grads = case.kernel(), parameters(AWKWARD), gradients(3, AWKWARD)
    assert_same_bits(updated(kernel, params, grads), run(kernel, params, grads))


@few_cases
@pytest.mark.parametrize(
    "options",
    [
        {"use_ema": True, "ema_overwrite_frequency": 2},
        {"constraints": {"bias": jnp.abs}},
        {"gradient_accumulation_steps": 2, "global_clipnorm": 0.5},
    ],
    ids=", ".join,
)
def test_stages_after_the_rule_are_in_the_update(case, options):
    """But for the rounding of a difference where they replace the parameter."""
    kernel, params, grads = case.kernel(**options), parameters(), gradients(5)
    assert_close(updated(kernel, params, grads), run(kernel, params, grads), 5)
