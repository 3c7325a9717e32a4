"""A bad call changes nothing but the counter: with `skip_nonfinite`, NaN or infinity anywhere leaves no trace.

One bad batch in a training of weeks must cost one batch. Without the guard it poisons the moments for good, and under
accumulation the sum. Whatever else is on, the calls around the bad one do what they would have done without it, bit
for bit.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_keras.engine.stages.guard import SKIPPED
from tests.laws.cases import FIRST, RATE, SMALL, assert_same_bits, gradients, parameters, run

SETTINGS = {
    "plain": {},
    "accumulate": {"gradient_accumulation_steps": 2},
    "clip": {"global_clipnorm": 0.5},
    "average": {"use_ema": True, "ema_overwrite_frequency": 2},
    "scale": {"loss_scale_factor": 4.0},
}
ADAM = next(case for case in FIRST if type(case.rule).__name__ == "Adam")
OTHERS = [case for case in reversed(FIRST) if case is not ADAM]


def without_counter(state):
    return state._replace(scalars={n: x for n, x in state.scalars.items() if n != SKIPPED})


# What is guarded is the call, whatever the rule: one rule in every setting, the others in one each, in turns.
CASES = [(ADAM, setting) for setting in SETTINGS] + [*zip(OTHERS, itertools.cycle(SETTINGS), strict=False)]


@pytest.mark.parametrize(("case", "setting"), CASES, ids=str)
def test_bad_calls_change_nothing(case, setting):
    kernel = case.kernel(RATE, skip_nonfinite=True, **SETTINGS[setting])
    good = gradients(4)
    params, state = run(kernel, parameters(), good)
    assert state.scalars[SKIPPED] == 0
    bad = [g | {n: g[n].at[(-1,) * g[n].ndim].set(x)} for g, n, x in zip(good, [*SMALL] * 2, BAD, strict=True)]
    spoilt = [g for pair in zip(bad, good, strict=True) for g in pair]
    other, counted = run(kernel, parameters(), [*spoilt, bad[0]])
    assert counted.scalars[SKIPPED] == 5
    assert_same_bits((other, without_counter(counted)), (params, without_counter(state)))


BAD = [np.nan, np.inf, -np.inf, np.nan]


@pytest.mark.parametrize("setting", SETTINGS)
def test_update_adds_nothing(setting):
    """The optax protocol's view of the same."""
    kernel = ADAM.kernel(skip_nonfinite=True, **SETTINGS[setting])
    params, grads = parameters(), gradients(1)[0]
    updates, state = kernel.update(jax.tree.map(lambda g: g * jnp.nan, grads), kernel.init(params), params)
    assert all(not np.any(u) for u in jax.tree.leaves(updates))
    assert_same_bits(without_counter(state), without_counter(kernel.init(params)))
