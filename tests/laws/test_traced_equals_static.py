"""Traced equals static: a run-time hyperparameter gives what the same number, written into the program, gives.

Ten learning rates, or ten betas, are to share one compiled program, so numbers reach it as arguments. That may cost no
accuracy (a float32 beta has a wrong `1 - beta`), and it must really be the argument that counts: a value baked in at
construction would be deaf to the kernel that runs.
"""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxopt_keras import Kernel
from jaxopt_keras.language.modifier import is_joint
from jaxopt_keras.language.rule import fields_of
from tests.laws.cases import (
    assert_close,
    assert_rounded,
    assert_same_bits,
    by_hand,
    few_cases,
    gradients,
    kinds,
    parameters,
    rounding,
    run,
    switched_cases,
)

STEPS = 30
OPTIONS = [
    {"clipnorm": 0.5, "use_ema": True, "ema_overwrite_frequency": 2},
    {"clipvalue": 0.5, "loss_scale_factor": 4.0},
    {"global_clipnorm": 0.5},
]


@kinds
def test_as_constants_of_the_program(case):
    kernel = case.kernel()
    static = jax.jit(kernel.step)  # where the kernel's numbers are constants

    params, grads = parameters(), gradients(STEPS)
    p, s = params, kernel.init(params)
    for g in grads:
        p, s = static(p, s, g)
    traced, state = run(kernel, params, grads)
    assert_close((traced, state), (p, s), STEPS)


@switched_cases
def test_as_python_floats(case):
    """So a hyperparameter loses no more in float32 than any other number."""
    params, grads = parameters(), gradients(STEPS)
    final, _ = run(case.kernel(), params, grads)
    for name, expected in by_hand(case, params, grads).items():
        assert_rounded(final[name], expected, rounding(jnp.float32, STEPS), name)


def redrawn(kernel, draw):
    """The kernel with every number that the compiled step takes replaced by another legal one."""

    def other(group):
        ranges = {name: fields_of(type(group))[name].range for name in group.traced()}
        low = {n: max(r.low, r.above, -1) for n, r in ranges.items()}
        drawn = {n: st.floats(low[n], low[n] + 1).filter(lambda x, r=r: x and x in r) for n, r in ranges.items()}
        numbers = {n: draw(x, label=n) for n, x in drawn.items()}
        return dataclasses.replace(group, **numbers)

    return Kernel(other(kernel.rule), other(kernel.options))


@switched_cases
@settings(max_examples=5)
@given(data=st.data())
def test_replaced_numbers_count(case, data):
    """Numbers replaced in the kernel, or in the state that it injects them into, are those of a kernel made of them."""
    kernel = case.kernel()
    other = redrawn(kernel, data.draw)
    numbers = other.rule.traced() | other.options.traced()
    grads = gradients(4)
    params, state = run(kernel, parameters(), grads[:2])
    expected = run(other, params, grads[2:], state)
    assert_same_bits(run(kernel.replace(**numbers), params, grads[2:], state), expected)
    injecting = case.kernel(inject_hyperparams=True)
    injected = injecting.replaced(
        injecting.init(params)._replace(count=state.count, scalars=state.scalars, slots=state.slots), **numbers
    )
    p, s = run(injecting, params, grads[2:], injected)
    assert_same_bits((p, s._replace(hyperparams={})), expected)


@switched_cases
def test_every_number_counts(case):
    """A number that is an argument but changes nothing has been baked in, or forgotten."""
    kernel = case.kernel()
    late = {"growth_rate"}  # counts only where an estimate grows fast: tests/engine/test_sums.py
    for name, value in kernel.rule.traced().items():
        if name in late:
            continue
        changed = dataclasses.replace(kernel.rule, **{name: value / 2 + 0.01})
        assert_differ(kernel, Kernel(changed, kernel.options), f"`{name}`")


@few_cases
@pytest.mark.parametrize("options", OPTIONS, ids=", ".join)
def test_every_number_of_the_options_counts(case, options):
    kernel = case.kernel(**options)
    for name, value in kernel.options.traced().items():
        changed = dataclasses.replace(kernel.options, **{name: value / 2 + 0.01})
        assert_differ(kernel, Kernel(kernel.rule, changed), f"`{name}`")


def assert_differ(kernel, changed, name):
    params, grads = parameters(), gradients(8)
    if is_joint(kernel.rule):  # an estimate of the distance grows far from a solution: of one sign
        grads = jax.tree.map(jnp.abs, grads)
    after, before = (jax.tree.leaves(run(k, params, grads)[0]) for k in (changed, kernel))
    assert any((a != b).any() for a, b in zip(after, before, strict=True)), f"{name} changes nothing"
