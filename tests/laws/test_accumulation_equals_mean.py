"""Accumulation equals the mean: k calls are one call with the mean gradient, and the first k - 1 of them do nothing.

A batch that is too large for the memory is cut into k parts, with the result of the whole batch: other options (clip,
decay, schedule, average) belong to the update and are applied once, and the sum starts from zero in every window.
"""

import jax

from jaxopt_keras.engine.stages.accumulate import MICRO_STEP, SUM
from tests.laws.cases import RATE, assert_close, assert_same_bits, few_cases, gradients, kinds, parameters, run

K, WINDOWS = 3, 3


def schedule(step):
    return RATE / (1 + step.astype(float))


OPTIONS = {"global_clipnorm": 0.5, "use_ema": True, "ema_overwrite_frequency": 2, "learning_rate": schedule}


def without_accumulator(state):
    slots = {name: tree for name, tree in state.slots.items() if name != SUM}
    return state._replace(scalars={k: x for k, x in state.scalars.items() if k != MICRO_STEP}, slots=slots)


@kinds
def test_accumulation_equals_mean(case):
    check(case, {})


@few_cases
def test_every_stage_once_per_update(case):
    check(case, OPTIONS)


def check(case, options):
    whole, parts = case.kernel(**options), case.kernel(**options, gradient_accumulation_steps=K)
    params, grads = parameters(), gradients(K * WINDOWS)
    windows = [grads[i : i + K] for i in range(0, len(grads), K)]
    means = [jax.tree.map(lambda *g: sum(g) / K, *window) for window in windows]
    expected = run(whole, params, means)

    state = parts.init(params)
    for window in windows:
        before = params, without_accumulator(state)
        for count, g in enumerate(window[:-1], 1):
            params, state = parts.step(params, state, g, donate=False)
            assert_same_bits((params, without_accumulator(state)), before)
            assert state.scalars[MICRO_STEP] == count
        params, state = parts.step(params, state, window[-1], donate=False)
        assert state.scalars[MICRO_STEP] == 0
    assert_close((params, without_accumulator(state)), expected, WINDOWS)
