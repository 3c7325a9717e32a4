"""Schedules against Keras, optax and formulas in doubles; what it means that they are values; errors and pictures."""

import copy
import inspect
import json
import math
import pickle
import sys
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxopt_keras import schedules
from jaxopt_keras.schedules import (
    CosineDecay,
    CosineDecayRestarts,
    ExponentialDecay,
    InverseSqrtDecay,
    InverseTimeDecay,
    Join,
    LearningRateSchedule,
    OneCycle,
    PiecewiseConstantDecay,
    PolynomialDecay,
    WarmupStableDecay,
    deserialize,
    is_schedule,
    plot,
    serialize,
)

# Every class, and every branch of its formula.
EXAMPLES = [
    ExponentialDecay(0.1, 10, 0.9),
    ExponentialDecay(0.1, 10, 0.9, staircase=True),
    ExponentialDecay(0.1, 7.5, 1.2, name="growth"),
    PiecewiseConstantDecay([10, 20, 45], [0.1, 0.05, 0.2, 0.01]),
    PiecewiseConstantDecay([12.5], [0.1, 0.2]),
    PolynomialDecay(0.1, 20),
    PolynomialDecay(0.1, 20, end_learning_rate=0.02, power=2.0),
    PolynomialDecay(0.1, 20, end_learning_rate=0.0, power=0.5, cycle=True),
    InverseTimeDecay(0.1, 10, 0.5),
    InverseTimeDecay(0.1, 10, 0.5, staircase=True),
    CosineDecay(0.1, 40),
    CosineDecay(0.1, 40, alpha=0.1, warmup_steps=5),
    CosineDecay(0.01, 40, alpha=0.1, warmup_target=0.2, warmup_steps=10),
    CosineDecay(0.01, 40, warmup_target=0.2),
    CosineDecayRestarts(0.1, 10),
    CosineDecayRestarts(0.1, 10, t_mul=1.0, m_mul=0.8, alpha=0.1),
    CosineDecayRestarts(0.1, 8, t_mul=1.5, m_mul=0.9),
    WarmupStableDecay(0.1, 10, 20, 30),
    WarmupStableDecay(0.1, 10, 20, 30, 0.01, 0.02, decay="cosine"),
    WarmupStableDecay(0.1, 0, 0, 30, decay="sqrt"),
    InverseSqrtDecay(0.1, 10),
    InverseSqrtDecay(0.1, 10, initial_learning_rate=0.1),
    OneCycle(0.1, 60),
    OneCycle(0.1, 50, 0.5, 10.0, 100.0),
    Join([PolynomialDecay(0.01, 10, 0.1), CosineDecay(0.1, 30), InverseTimeDecay(0.1, 5, 0.5)], [10, 45]),
    Join([CosineDecay(0.1, 30)], []),
]
STEPS = np.arange(80)
# For arguments that a type checker would refuse:
any_exponential: Any = ExponentialDecay
any_piecewise: Any = PiecewiseConstantDecay
any_cosine: Any = CosineDecay
each = pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)


# The formulas again, in doubles, with whole numbers of waves and stairs counted in fractions.


def exponential(s: ExponentialDecay, step: int) -> float:
    p = Fraction(step) / Fraction(s.decay_steps)
    return s.initial_learning_rate * s.decay_rate ** (math.floor(p) if s.staircase else float(p))


def piecewise(s: PiecewiseConstantDecay, step: int) -> float:
    return next(
        (value for boundary, value in zip(s.boundaries, s.values, strict=False) if step <= boundary), s.values[-1]
    )


def polynomial(s: PolynomialDecay, step: int) -> float:
    n = Fraction(s.decay_steps)
    if s.cycle:
        n *= max(math.ceil(step / n), 1)
    p = float(min(step, n) / n)
    return (s.initial_learning_rate - s.end_learning_rate) * (1 - p) ** s.power + s.end_learning_rate


def inverse_time(s: InverseTimeDecay, step: int) -> float:
    p = Fraction(step) / Fraction(s.decay_steps)
    return s.initial_learning_rate / (1 + s.decay_rate * (math.floor(p) if s.staircase else float(p)))


def cosine(s: CosineDecay, step: int) -> float:
    peak, warm = s.initial_learning_rate, 0.0
    if s.warmup_target is not None:
        peak, warm = s.warmup_target, s.warmup_steps
    if step < warm:
        return s.initial_learning_rate + step / warm * (peak - s.initial_learning_rate)
    p = min(step - warm, s.decay_steps) / s.decay_steps
    return peak * ((1 - s.alpha) * 0.5 * (1 + math.cos(math.pi * p)) + s.alpha)


def restarts(s: CosineDecayRestarts, step: int) -> float:
    left, length, height = Fraction(step), Fraction(s.first_decay_steps), 1.0
    while left >= length:
        left, length, height = left - length, length * Fraction(str(s.t_mul)), height * s.m_mul
    wave = 0.5 * (1 + math.cos(math.pi * float(left / length)))
    return s.initial_learning_rate * ((1 - s.alpha) * height * wave + s.alpha)


def warmup_stable(s: WarmupStableDecay, step: int) -> float:
    if step < s.warmup_steps:
        return s.initial_learning_rate + step / s.warmup_steps * (s.peak_learning_rate - s.initial_learning_rate)
    p = min(max(step - (s.warmup_steps + s.stable_steps), 0) / s.decay_steps, 1)
    f = {"linear": 1 - p, "cosine": 0.5 * (1 + math.cos(math.pi * p)), "sqrt": 1 - p**0.5}[s.decay]
    return s.peak_learning_rate * f + s.end_learning_rate * (1 - f)


def inverse_sqrt(s: InverseSqrtDecay, step: int) -> float:
    if step < s.warmup_steps:
        return s.initial_learning_rate + step / s.warmup_steps * (s.peak_learning_rate - s.initial_learning_rate)
    return s.peak_learning_rate * s.warmup_steps**0.5 * step**-0.5


def one_cycle(s: OneCycle, step: int) -> float:
    top, start = s.warmup_fraction * s.total_steps, s.peak_learning_rate / s.div_factor
    first, last, p = start, s.peak_learning_rate, step / top
    if step >= top:
        first, last, p = s.peak_learning_rate, start / s.final_div_factor, min((step - top) / (s.total_steps - top), 1)
    return first + (last - first) * math.sin(math.pi * p / 2) ** 2


def joined(s: Join, step: int) -> float:
    i = sum(step >= start for start in s.boundaries)
    return ORACLES[type(s.schedules[i])](s.schedules[i], step - ([0, *s.boundaries][i]))


ORACLES: dict[type, Callable[[Any, int], float]] = {
    ExponentialDecay: exponential,
    PiecewiseConstantDecay: piecewise,
    PolynomialDecay: polynomial,
    InverseTimeDecay: inverse_time,
    CosineDecay: cosine,
    CosineDecayRestarts: restarts,
    WarmupStableDecay: warmup_stable,
    InverseSqrtDecay: inverse_sqrt,
    OneCycle: one_cycle,
    Join: joined,
}


def oracle(schedule: Any, steps: Any) -> np.ndarray:
    return np.array([ORACLES[type(schedule)](schedule, int(step)) for step in steps])


def assert_close(rates: Any, expected: np.ndarray, tolerance: float) -> None:
    # Relative to the largest rate: near the end of a decay a small rate is a difference of large ones.
    np.testing.assert_allclose(rates, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def _piecewise(draw: Any) -> PiecewiseConstantDecay:
    boundaries = draw(st.lists(counts, unique=True, max_size=5).map(sorted))
    return PiecewiseConstantDecay(boundaries, [draw(rates) for _ in range(len(boundaries) + 1)])


rates = st.just(0.0) | st.floats(1e-8, 10)  # no subnormal numbers, which XLA flushes to 0
counts = st.integers(1, 1000)
spans = counts | st.floats(1, 1000).map(lambda x: round(x * 8) / 8)  # exact in float32 too
flags = st.booleans()
scheds = st.one_of(
    st.builds(ExponentialDecay, rates, spans, st.floats(0.1, 1.05), flags),
    st.composite(_piecewise)(),
    st.builds(PolynomialDecay, rates, spans, rates, st.floats(0.5, 3), flags),
    st.builds(InverseTimeDecay, rates, spans, rates, flags),
    st.builds(CosineDecay, rates, spans, rates, warmup_target=st.none() | rates, warmup_steps=st.just(0) | spans),
    st.builds(
        CosineDecayRestarts,
        rates,
        spans,
        st.sampled_from([1.0, 1.1, 1.2, 1.5, 2.0, 2.7, 3.0, 10.0]),
        st.floats(0, 1.2),
        rates,
    ),
    st.builds(
        WarmupStableDecay, rates, spans, spans, spans, rates, rates, st.sampled_from(["linear", "cosine", "sqrt"])
    ),
    st.builds(InverseSqrtDecay, rates, spans, rates),
    st.builds(OneCycle, rates, spans, st.floats(0.1, 0.9), st.floats(1, 100), st.floats(1, 1e5)),
)


@each
def test_formula(schedule):
    rates = schedule(STEPS)
    assert rates.dtype == jnp.float32 and not rates.weak_type
    assert_close(rates, oracle(schedule, STEPS), 2e-6)


@given(scheds, st.lists(st.integers(0, 5000), min_size=16, max_size=16))
def test_formula_in_doubles(schedule, steps):
    with jax.enable_x64(True):
        rates = schedule(np.array(steps))
        assert rates.dtype == jnp.float64
        assert_close(rates, oracle(schedule, steps), 1e-12)


def test_every_class_has_an_example_and_a_formula():
    classes = set(schedules.configs.CLASSES.values())
    assert classes == set(ORACLES) == {type(schedule) for schedule in EXAMPLES}
    assert {kind.__name__ for kind in classes} | {"LearningRateSchedule"} <= set(schedules.__all__)


# Changes of the rate come at their step, compiled or not.

EDGY = (3, 10, 41, 47, 55, 1000)  # in float32, k n / n is below k for some k where XLA multiplies by 1 / n


@pytest.mark.parametrize("run", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_stairs_come_at_their_step(run):
    for n in EDGY:
        edges = n * np.arange(1, 150)
        for schedule in (ExponentialDecay(1.0, n, 0.99, staircase=True), InverseTimeDecay(1.0, n, 0.1, staircase=True)):
            for steps in (edges - 1, edges):
                assert_close(run(schedule)(steps), oracle(schedule, steps), 2e-6)


@pytest.mark.parametrize("run", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_cycles_come_at_their_step(run):
    for n in EDGY:
        edges = n * np.arange(1, 150)
        schedule = PolynomialDecay(1.0, n, end_learning_rate=0.25, power=0.5, cycle=True)
        assert np.all(run(schedule)(edges) == 0.25)
        assert np.all(run(schedule)(edges + 1) > 0.25)


@pytest.mark.parametrize("t_mul", [1, 2, 3, 10])
def test_restarts_come_at_their_step(t_mul):
    starts = [41 * sum(t_mul**k for k in range(i)) for i in range(1, 25)]
    steps = np.array([step for start in starts if start < 2**20 for step in (start - 1, start)])
    schedule = CosineDecayRestarts(1.0, 41, t_mul=t_mul)
    rates = jax.jit(schedule)(steps)
    assert_close(rates, oracle(schedule, steps), 2e-6)
    assert np.all(np.array(rates)[1::2] == 1)


def test_restarts_between_steps(x64):
    schedule = CosineDecayRestarts(1.0, 10, t_mul=1.2)  # at 10, 22 (in doubles 22.000000000000004), 36.4, 53.68
    rates = jax.jit(schedule)(STEPS)
    assert_close(rates, oracle(schedule, STEPS), 1e-12)
    assert rates[22] > 1 - 1e-12 and rates[36] < 0.01 and rates[37] > 0.98


def test_the_last_rate_is_exact():
    for n in EDGY:
        assert jax.jit(PolynomialDecay(0.5, n, end_learning_rate=0.0, power=0.1))(np.int32(n)) == 0


def test_an_integer_rate_is_a_rate():
    assert_close(ExponentialDecay(1, 10, 0.5)(np.arange(3)), 0.5 ** (np.arange(3) / 10), 1e-6)
    assert_close(CosineDecay(0, 100, warmup_target=0.1, warmup_steps=10)(np.arange(3)), np.array([0, 0.01, 0.02]), 1e-6)
    assert ExponentialDecay(1, 10, 1) == ExponentialDecay(1.0, 10.0, 1.0)
    config = CosineDecay(0, 10, warmup_target=1).get_config()  # Keras, if it reads this, must not compute in integers
    assert type(config["initial_learning_rate"]) is type(config["warmup_target"]) is float


def test_huge_counts():
    assert float(ExponentialDecay(0.5, 10**12, 0.5)(3)) == 0.5
    assert float(WarmupStableDecay(0.5, 0, 2**31 - 1, 10**12)(3)) == 0.5
    assert float(PiecewiseConstantDecay([5, 10**12], [0.5, 0.25, 0.1])(6)) == 0.25


# Keras and optax


def keras_schedules() -> Any:
    return pytest.importorskip("keras").optimizers.schedules


KERAS_CLASSES = [kind for kind in ORACLES if kind not in (WarmupStableDecay, InverseSqrtDecay, OneCycle, Join)]


@pytest.mark.parametrize("kind", KERAS_CLASSES, ids=lambda kind: kind.__name__)
def test_signature_is_keras(kind):
    ours = inspect.signature(kind).parameters.values()
    theirs = inspect.signature(getattr(keras_schedules(), kind.__name__)).parameters.values()
    assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in theirs]


in_keras = pytest.mark.parametrize("schedule", [s for s in EXAMPLES if type(s) in KERAS_CLASSES], ids=repr)


@in_keras
def test_rates_are_keras(schedule, jax_defaults):
    theirs = getattr(keras_schedules(), type(schedule).__name__)(**schedule.get_config())
    assert theirs.get_config() == schedule.get_config()
    assert_close(schedule(STEPS), np.array(jax.jit(jax.vmap(theirs))(STEPS)), 2e-6)


@in_keras
def test_reads_what_keras_serialized(schedule):
    keras = keras_schedules()
    theirs = getattr(keras, type(schedule).__name__)(**schedule.get_config())
    assert deserialize(keras.serialize(theirs)) == schedule


def test_rates_are_optax(jax_defaults):
    optax = pytest.importorskip("optax")
    pairs = [
        (ExponentialDecay(0.1, 10, 0.9), optax.exponential_decay(0.1, 10, 0.9)),
        (ExponentialDecay(0.1, 10, 0.9, True), optax.exponential_decay(0.1, 10, 0.9, staircase=True)),
        (PolynomialDecay(0.1, 20, 0.01, 2.0), optax.polynomial_schedule(0.1, 0.01, 2.0, 20)),
        # optax changes at the boundary, Keras after it.
        (
            PiecewiseConstantDecay([10, 20], [0.1, 0.05, 0.2]),
            optax.piecewise_constant_schedule(0.1, {11: 0.5, 21: 4.0}),
        ),
        (OneCycle(0.1, 60), optax.cosine_onecycle_schedule(60, 0.1)),
        (
            Join([PolynomialDecay(0.01, 10, 0.1), CosineDecay(0.1, 40)], [12]),
            optax.join_schedules([optax.linear_schedule(0.01, 0.1, 10), optax.cosine_decay_schedule(0.1, 40)], [12]),
        ),
        (CosineDecay(0.1, 40, 0.1), optax.cosine_decay_schedule(0.1, 40, 0.1)),
        # optax counts the warm-up among the steps of the decay.
        (CosineDecay(0, 40, 0.1, None, 0.2, 10), optax.warmup_cosine_decay_schedule(0.0, 0.2, 10, 50, 0.02)),
        (
            CosineDecayRestarts(0.1, 10),
            optax.join_schedules([optax.cosine_decay_schedule(0.1, 10 * 2**i) for i in range(4)], [10, 30, 70]),
        ),
        (
            WarmupStableDecay(0.1, 10, 20, 30, 0.01, 0.02),
            optax.join_schedules(
                [
                    optax.linear_schedule(0.01, 0.1, 10),
                    optax.constant_schedule(0.1),
                    optax.linear_schedule(0.1, 0.02, 30),
                ],
                [10, 30],
            ),
        ),
    ]
    for ours, theirs in pairs:
        assert_close(ours(STEPS), np.array(jax.jit(jax.vmap(theirs))(STEPS)), 2e-6)


def test_the_rules_of_the_papers():
    step = np.arange(1, 100)
    noam = 512**-0.5 * np.minimum(step**-0.5, step * 40**-1.5)
    assert_close(InverseSqrtDecay((512 * 40) ** -0.5, 40)(step), noam, 2e-6)
    t5 = 1 / np.sqrt(np.maximum(step, 40))
    assert_close(InverseSqrtDecay(40**-0.5, 40, initial_learning_rate=40**-0.5)(step), t5, 2e-6)


# Whatever the step is, and however the schedule is run


@each
@pytest.mark.parametrize(
    "step",
    [17, np.int64(17), np.uint8(17), np.float32(17), jnp.int32(17), jnp.array(17.0)],
    ids=lambda x: type(x).__name__,
)
def test_any_kind_of_step(schedule, step):
    rate = schedule(step)
    assert rate.shape == () and rate.dtype == jnp.float32
    assert_close(rate, oracle(schedule, [17])[0], 2e-6)


@each
def test_transformations(schedule):
    @jax.jit
    def several(steps):
        one_by_one = jax.lax.scan(lambda step, _: (step + 1, schedule(step)), jnp.int32(0), length=len(STEPS))[1]
        return schedule(steps), jax.vmap(schedule)(steps), one_by_one, schedule(steps.reshape(8, 10)).reshape(80)

    for rates in several(jnp.asarray(STEPS, jnp.int32)):
        assert_close(rates, oracle(schedule, STEPS), 2e-6)


@each
def test_no_nan_on_the_way(schedule):
    with jax.debug_nans(True), jax.debug_infs(True):
        schedule(STEPS)


def test_x64(x64):
    for step in (3, np.int64(3), jnp.int32(3), jnp.int64(3)):
        assert ExponentialDecay(0.1, 10, 0.9)(step).dtype == jnp.float64


def test_a_signature_says_the_rules():
    assert "Annotated[float, above 0 and finite]" in str(inspect.signature(ExponentialDecay))


def test_the_name_is_seen_in_profiles():
    program = jax.jit(ExponentialDecay(0.1, 10, 0.9, name="my_rate")).lower(3).as_text(debug_info=True)
    assert "my_rate" in program
    ExponentialDecay(0.1, 10, 0.9, name=None)(3)  # as in an example of Keras's


# Values


@each
def test_is_a_value(schedule):
    assert eval(repr(schedule)) == schedule
    for twin in (
        type(schedule)(**schedule.get_config()),
        copy.deepcopy(schedule),
        pickle.loads(pickle.dumps(schedule)),
    ):
        assert twin is not schedule and twin == schedule and hash(twin) == hash(schedule)
    assert [other for other in EXAMPLES if other == schedule] == [schedule]
    with pytest.raises(AttributeError):
        schedule.name = "another"


def test_equality_is_of_class_and_arguments():
    assert ExponentialDecay(0.1, 10, 0.5) != InverseTimeDecay(0.1, 10, 0.5, name="ExponentialDecay")
    assert ExponentialDecay(0.1, 10, 0.5) != ExponentialDecay(0.1, 10, 0.5, name="other")
    assert ExponentialDecay(0.1, 10, 0.5) != "ExponentialDecay"
    assert PiecewiseConstantDecay([1], [2, 3]) == any_piecewise((1,), np.array([2.0, 3.0]))
    assert PiecewiseConstantDecay([1], [2, 3]).boundaries == (1,)


def test_a_subclass_may_hold_more():
    class Warm(ExponentialDecay):
        def __init__(self, warm, **kwargs):
            super().__init__(**kwargs)
            self.warm = warm

        def __call__(self, step):
            return jnp.where(step < self.warm, 0.0, super().__call__(step))

    short, long = (Warm(warm, initial_learning_rate=0.1, decay_steps=10, decay_rate=0.5) for warm in (1, 5))
    assert short != long and short != ExponentialDecay(0.1, 10, 0.5)
    assert float(short(2)) > 0 and float(long(2)) == 0


def test_equal_schedules_share_a_program():
    traces = []

    @partial(jax.jit, static_argnums=0)
    def rate(schedule, step):
        traces.append(schedule)
        return schedule(step)

    for _ in range(2):
        rate(CosineDecay(0.1, 100), 3)
        rate(PiecewiseConstantDecay([10, 20], [3, 2, 1]), 3)
    assert len(traces) == 2
    rate(CosineDecay(0.1, 200), 3)
    assert len(traces) == 3


# Configurations


@each
def test_config_round_trip(schedule):
    config = schedule.get_config()
    assert list(config) == list(inspect.signature(type(schedule)).parameters)
    assert json.loads(json.dumps(config)) == config
    assert type(schedule).from_config(config) == schedule

    serialized = serialize(schedule)
    assert serialized == {
        "module": "jaxopt_keras.schedules",
        "class_name": type(schedule).__name__,
        "config": config,
        "registered_name": None,
    }
    before = copy.deepcopy(serialized)
    assert deserialize(serialized) == deserialize(json.loads(json.dumps(serialized))) == schedule
    assert serialized == before
    assert deserialize({"class_name": type(schedule).__name__, "config": config}) == schedule
    assert deserialize(serialized | {"module": "keras.optimizers.schedules"}) == schedule


def test_config_of_numpy_and_jax_numbers_is_json():
    schedule = any_cosine(
        np.float32(0.1), np.int64(10), jnp.float32(0.5), warmup_target=np.array(1), warmup_steps=np.uint8(2)
    )
    assert json.loads(json.dumps(schedule.get_config())) == schedule.get_config()
    assert schedule.get_config()["initial_learning_rate"] == float(np.float32(0.1))
    assert any_exponential(0.1, 10, 0.5, staircase=np.bool_(True)).staircase is True


class Halving(LearningRateSchedule):
    def __init__(self, start: float):
        self.start = start

    def __call__(self, step: Any) -> Any:
        return self.start * 0.5**step

    def get_config(self) -> dict[str, Any]:
        return {"start": self.start}


def test_schedules_of_your_own():
    config = serialize(Halving(0.5))
    assert config["module"] == __name__ and config["class_name"] == "Halving" and config["config"] == {"start": 0.5}
    assert deserialize(config, custom_objects={"Halving": Halving})(1) == 0.25
    registered = config | {"registered_name": "mine>Halving"}
    assert isinstance(deserialize(registered, {"mine>Halving": Halving}), Halving)
    assert isinstance(deserialize(registered, {"Halving": Halving}), Halving)
    assert Halving(0.1) != Halving(0.1)  # it may change: only itself


def test_what_cannot_be_deserialized():
    with pytest.raises(ValueError, match=r"'CosineDecay'.*custom_objects=.*class_name='Halving'"):
        deserialize(serialize(Halving(0.5)))
    with pytest.raises(ValueError, match="module='elsewhere'"):
        deserialize({"module": "elsewhere", "class_name": "CosineDecay", "config": {}})
    for config in ("CosineDecay", {}, {"class_name": 3}, None):
        with pytest.raises(TypeError, match="`config` must be a dict with `class_name`"):
            deserialize(config)
    with pytest.raises(TypeError, match="must be a `LearningRateSchedule` to be serialized"):
        serialize(lambda step: 0.1)


def test_the_base_class_says_what_is_missing():
    class Empty(LearningRateSchedule):
        pass

    with pytest.raises(NotImplementedError, match=r"`Empty` must define `__call__\(self, step\)`"):
        Empty()(0)
    with pytest.raises(NotImplementedError, match=r"`Empty` must define `get_config\(self\)`"):
        Empty().get_config()


# Errors


WRONG_VALUES = {
    "decay_steps=0": lambda: ExponentialDecay(0.1, 0, 0.5),
    "decay_steps=-5": lambda: PolynomialDecay(0.1, -5),
    "decay_steps=0.0": lambda: InverseTimeDecay(0.1, 0.0, 0.5),
    "decay_steps=-1": lambda: CosineDecay(0.1, -1),
    "first_decay_steps=0": lambda: CosineDecayRestarts(0.1, 0),
    "decay_steps=inf": lambda: WarmupStableDecay(0.1, 1, 1, math.inf),
    "warmup_steps=0": lambda: InverseSqrtDecay(0.1, 0),
    "warmup_steps=-1": lambda: CosineDecay(0.1, 10, warmup_target=0.2, warmup_steps=-1),
    "stable_steps=-1": lambda: WarmupStableDecay(0.1, 1, -1, 1),
    "initial_learning_rate=-0.1": lambda: ExponentialDecay(-0.1, 10, 0.5),
    "initial_learning_rate=nan": lambda: CosineDecay(math.nan, 10),
    "peak_learning_rate=inf": lambda: InverseSqrtDecay(math.inf, 10),
    "end_learning_rate=-1": lambda: PolynomialDecay(0.1, 10, -1),
    "warmup_target=-0.1": lambda: CosineDecay(0.1, 10, warmup_target=-0.1, warmup_steps=1),
    "decay_rate=-0.5": lambda: InverseTimeDecay(0.1, 10, -0.5),
    "power=-1": lambda: PolynomialDecay(0.1, 10, power=-1),
    "alpha=-1": lambda: CosineDecay(0.1, 10, alpha=-1),
    "t_mul=0.5": lambda: CosineDecayRestarts(0.1, 10, t_mul=0.5),
    "m_mul=-1": lambda: CosineDecayRestarts(0.1, 10, m_mul=-1),
    "boundaries[1]=-2": lambda: PiecewiseConstantDecay([1, -2], [1, 2, 3]),
    "values[0]=-1": lambda: PiecewiseConstantDecay([1], [-1, 2]),
    "boundaries=[2, 1]": lambda: PiecewiseConstantDecay([2, 1], [1, 2, 3]),
    "boundaries=[2, 2]": lambda: PiecewiseConstantDecay([2, 2], [1, 2, 3]),
    "div_factor=0.5": lambda: OneCycle(0.1, 10, div_factor=0.5),
    "warmup_fraction=1.0": lambda: OneCycle(0.1, 10, warmup_fraction=1.0),
    "boundaries=": lambda: Join([CosineDecay(0.1, 10), CosineDecay(0.1, 10)], []),
    "boundaries=[5.0, 5.0]": lambda: Join([CosineDecay(0.1, 10)] * 3, [5.0, 5.0]),
    "decay='cubic'": lambda: WarmupStableDecay(0.1, 1, 1, 1, decay="cubic"),
}
WRONG_TYPES = {
    "initial_learning_rate='0.1'": lambda: any_exponential("0.1", 10, 0.5),
    "initial_learning_rate=None": lambda: any_exponential(None, 10, 0.5),
    "initial_learning_rate=[0.1]": lambda: any_exponential([0.1], 10, 0.5),
    "initial_learning_rate=True": lambda: any_exponential(True, 10, 0.5),
    "initial_learning_rate=1j": lambda: any_exponential(1j, 10, 0.5),
    "decay_steps=np.True_": lambda: any_exponential(0.1, np.bool_(True), 0.5),
    "decay_rate=array([0.5])": lambda: any_exponential(0.1, 10, np.array([0.5])),
    "staircase='yes'": lambda: any_exponential(0.1, 10, 0.5, "yes"),
    "staircase=1": lambda: any_exponential(0.1, 10, 0.5, 1),
    "name=3": lambda: any_exponential(0.1, 10, 0.5, name=3),
    "boundaries=5": lambda: any_piecewise(5, [1, 2]),
    "values='ab'": lambda: any_piecewise([5], "ab"),
    "values[1]='b'": lambda: any_piecewise([5], [1, "b"]),
}


@pytest.mark.parametrize(
    "received, make, error",
    [
        pytest.param(received, make, error, id=received)
        for error, cases in ((ValueError, WRONG_VALUES), (TypeError, WRONG_TYPES))
        for received, make in cases.items()
    ],
)
def test_wrong_arguments(received, make, error):
    with pytest.raises(error) as caught:
        make()
    name = received.split("=")[0]
    assert str(caught.value).startswith(f"`{name}` must ") and f"Received: {received}" in str(caught.value)


def test_lengths_must_fit():
    for boundaries, values in (([1, 2], [1, 2]), ([1], [1]), ([], [])):
        with pytest.raises(ValueError, match="`values` must be one longer than `boundaries`.*Received: boundaries="):
            PiecewiseConstantDecay(boundaries, values)
    assert float(PiecewiseConstantDecay([], [0.5])(3)) == 0.5


def test_a_traced_argument_is_refused():
    with pytest.raises(TypeError, match="`initial_learning_rate` must be a number. Received: initial_learning_rate="):
        jax.jit(lambda rate: ExponentialDecay(rate, 10, 0.5)(3))(0.1)


# Any function of the step


class Method:
    def of_step(self, step):
        return 0.1

    def of_nothing(self):
        return 0.1


@pytest.mark.parametrize(
    "x, expected",
    [
        (ExponentialDecay(0.1, 10, 0.5), True),
        (Halving(0.1), True),
        (lambda step: 0.1, True),
        (lambda *args: 0.1, True),
        (partial(lambda rate, step: rate, 0.1), True),
        (Method().of_step, True),
        (jax.jit(lambda step: 0.1), True),
        (dict.pop, True),  # has no signature to read
        (lambda: 0.1, False),
        (lambda *, step=0: 0.1, False),
        (lambda **kwargs: 0.1, False),
        (Method().of_nothing, False),
        (partial(lambda step: 0.1, 3), False),
        (0.1, False),
        (np.float32(0.1), False),
        (jnp.ones(()), False),
        ("ExponentialDecay", False),
        (None, False),
    ],
)
def test_is_schedule(x, expected):
    assert is_schedule(x) is expected


# Pictures


def drawn(ax: Any) -> dict[str, tuple[list[float], list[float]]]:
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines}


@pytest.fixture
def matplotlib():
    return pytest.importorskip("matplotlib")


def test_plot(matplotlib, tmp_path):
    schedule = PolynomialDecay(1.0, 20, 0.5)
    ax = plot(schedule, 30, path=tmp_path / "rate.png")
    ((x, y),) = drawn(ax).values()
    assert x == list(range(30))
    assert_close(y, oracle(schedule, range(30)), 1e-6)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "learning rate")

    assert (tmp_path / "rate.png").read_bytes().startswith(b"\x89PNG")
    pixels = matplotlib.image.imread(tmp_path / "rate.png")
    assert min(pixels.shape[:2]) > 300 and len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 10


def test_plot_several(matplotlib, tmp_path):
    optax = pytest.importorskip("optax")
    lines = {
        "ours": CosineDecay(0.1, 20),
        "optax": optax.linear_schedule(0.1, 0.0, 20),
        "python": lambda step: 0.1 if step < 5 else 0,
    }
    ax = plot(lines, 20)
    assert list(drawn(ax)) == ["ours", "optax", "python"]
    assert drawn(ax)["python"][1] == [0.1] * 5 + [0.0] * 15

    def mine(step):
        return 0.1

    assert list(drawn(plot([CosineDecay(0.1, 20), mine, Halving(0.1)], 20))) == ["CosineDecay", "mine", "Halving"]
    assert len(plot([CosineDecay(0.1, 20), CosineDecay(0.2, 20)], 20).lines) == 2  # of one name
    assert plot(mine, 20, ax=ax) is ax and list(drawn(ax)) == ["ours", "optax", "python", "mine"]
    plot(mine, 20, ax=ax, path=tmp_path / "all.png")
    assert (tmp_path / "all.png").exists()


def test_plot_chooses_steps(matplotlib):
    schedule = CosineDecay(0.1, 5000)
    x = next(iter(drawn(plot(schedule, 5000)).values()))[0]
    assert len(x) == 1000 and x[0] == 0 and x[-1] == 4999 and x == [int(step) for step in x]
    assert next(iter(drawn(plot(schedule, [5, 50, 500])).values()))[0] == [5, 50, 500]


def test_plot_leaves_pyplot_alone(matplotlib):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    backend, figures = matplotlib.get_backend(), pyplot.get_fignums()
    plot(CosineDecay(0.1, 20), 20)
    assert matplotlib.get_backend() == backend and pyplot.get_fignums() == figures


def test_plot_errors(monkeypatch):
    with pytest.raises(TypeError, match="`schedule` must be a function of the step.*Received: 0.1"):
        plot({"constant": 0.1}, 20)
    for steps in (0, -3, []):
        with pytest.raises(ValueError, match="`steps` must be at least 1. Received: steps="):
            plot(CosineDecay(0.1, 20), steps)

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # its import raises an ImportError
    with pytest.raises(ImportError, match=r"pip install 'jaxopt_keras\[plots\]'"):
        plot(CosineDecay(0.1, 20), 20)
