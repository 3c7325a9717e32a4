"""A parameter of 16 bits gets no farther from float64 than in the library that the rule follows.

The arithmetic and the slots are float32 here, and of 16 bits in Keras and optax, so that writing the parameter is all
that can go wrong. It does where a rule reads more out of the parameter than where it is: schedule-free AdamW has its
average x from y and z alone. When y does not move, because its step is less than half of a last place, x moves away
from z. It keeps the float32 y by default; the second half of this file is about that.
"""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxopt_keras as jk
from benchmarks.parity.cases import Case, Terms
from benchmarks.parity.histories import to_numpy
from benchmarks.parity.keras import Keras
from benchmarks.parity.optax import Optax
from benchmarks.parity.oracle import Oracle
from benchmarks.parity.peer import RULES
from jaxopt_keras import Kernel, Options, checkpoint
from jaxopt_keras.language.rule import fields_of
from jaxopt_keras.optimizers import FUNCTIONS

STEPS, ROWS = 60, 64
DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
PEERS = {"keras": Keras, "optax": Optax}
RATES = {"adadelta": 1.0}  # else 0.05
HYPER = {
    "schedule_free_adamw": {"beta_1": 0.9, "beta_2": 0.9, "warmup_steps": 5},
    "muon": {"exclude_embeddings": False},
}
FARTHER, EQUAL = 1.5, 2e-5  # times the peer's error; or of the distance travelled

VARIANTS = [(name, v) for name, rule in RULES.items() for v in rule.variants if v in PEERS]
every_variant = pytest.mark.parametrize(("name", "variant"), VARIANTS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
schedule_free = pytest.mark.parametrize("variant", RULES["schedule_free_adamw"].variants)
ignoring_overflows = pytest.mark.filterwarnings("ignore:(overflow|invalid value)")  # of peers in float16
pytestmark = [ignoring_overflows, pytest.mark.usefixtures("jax_defaults")]


def drawn(name, variant, dtype, seed=0):
    """Parameters of size 1; gradients that are noise for one, and always the same for the other."""
    rule, rng, numbers = RULES[name], np.random.default_rng(seed), DTYPES[dtype]
    terms: Terms = PEERS[variant]().terms(rule)[0]
    hyper = {n: getattr(rule, n) for n in fields_of(rule) if n in terms.names and n not in ("learning_rate", "variant")}
    normal = lambda: rng.normal(size=(ROWS, 8)).astype(numbers)
    steady = normal()
    return Case(
        optimizer=rule,
        variant=variant,
        hyper=hyper | dict(terms.pinned) | HYPER.get(name, {}),
        options={"weight_decay": 0.004 if rule.required else None},
        rate=RATES.get(name, 0.05),
        params={"noisy": normal(), "steady": normal()},
        grads=[{"noisy": normal(), "steady": steady} for _ in range(STEPS)],
    )


def by_default(case, **options):
    """The history of the named optimizer, with its own defaults."""
    arguments = {"variant": case.variant} | case.hyper | case.options | options
    kernel = FUNCTIONS[case.optimizer.__module__.rpartition(".")[2]](case.rate, **arguments)
    params = {n: jnp.asarray(p) for n, p in case.params.items()}
    state, history = kernel.init(params), []
    for grads in case.grads:
        params, state = kernel.step(params, state, grads, donate=False)
        history.append(to_numpy(params))
    return history


def stacked(history, name):
    return np.stack([np.asarray(params[name], np.float64) for params in history])


def errors(history, exact, name):
    """The root mean square and the greatest of each row, over all steps; infinite where something is not finite."""
    apart = stacked(history, name) - stacked(exact, name)
    apart = np.where(np.isfinite(apart), np.abs(apart), np.inf)
    return np.sqrt(np.mean(apart**2, (0, 2))), np.max(apart, (0, 2))


def assert_near(ours, theirs, travelled, message):
    near = (ours <= FARTHER * theirs) | (ours <= EQUAL * travelled)
    assert np.all(near), (message, np.max(ours / theirs), np.max(ours / travelled))


@every_dtype
@every_variant
def test_no_rule_is_farther_than_its_library(name, variant, dtype):
    case = drawn(name, variant, dtype)
    exact, ours, theirs = Oracle().run(case), by_default(case), PEERS[variant]().run(case)
    for array, start in case.params.items():
        travelled = np.max(np.abs(stacked(exact, array) - start.astype(np.float64)))
        mine, peers = errors(ours, exact, array), errors(theirs, exact, array)
        assert_near(np.sqrt(np.mean(mine[0] ** 2)), np.sqrt(np.mean(peers[0] ** 2)), travelled, (array, "rms"))
        assert_near(np.max(mine[1]), np.max(peers[1]), travelled, (array, "greatest"))


@every_dtype
@schedule_free
def test_no_row_of_schedule_free_is_farther(variant, dtype):
    """Eight elements are few enough to be lucky, for the peer; ours are right in every row."""
    for seed in range(3):
        case = drawn("schedule_free_adamw", variant, dtype, seed)
        exact, ours, theirs = Oracle().run(case), by_default(case), PEERS[variant]().run(case)
        for array, start in case.params.items():
            travelled = np.max(np.abs(stacked(exact, array) - start.astype(np.float64)), (0, 2))
            for mine, peers in zip(errors(ours, exact, array), errors(theirs, exact, array), strict=True):
                assert_near(mine, peers, travelled, (array, seed))


@every_dtype
@schedule_free
def test_schedule_free_is_rounded_once(variant, dtype):
    """At every step the parameter is half of a last place from float64, and its master a few roundings of float32."""
    case = drawn("schedule_free_adamw", variant, dtype)
    exact, eps = Oracle().run(case), float(ml_dtypes.finfo(DTYPES[dtype]).eps)

    def is_near(history, array):
        expected = stacked(exact, array)
        return np.abs(stacked(history, array) - expected) <= np.abs(expected) * eps / 2 + 2e-5

    ours, without = by_default(case), by_default(case, master_weights=None)
    for array in case.params:
        assert np.all(is_near(ours, array)) and not np.all(is_near(without, array))


@every_dtype
def test_what_is_evaluated_has_lost_nothing(dtype):
    """x of the 16-bit parameter is x of its float32 twin, rounded once."""
    kernel, case = jk.schedule_free_adamw(0.05), drawn("schedule_free_adamw", "keras", dtype)
    runs = {}
    for numbers in (DTYPES[dtype], np.float32):
        params = {n: jnp.asarray(p.astype(numbers)) for n, p in case.params.items()}
        state = kernel.init(params)
        for grads in case.grads:
            params, state = kernel.step(params, state, grads)
        runs[numbers] = kernel.averaged(params, state)
    for name, x in runs[np.float32].items():
        half = float(ml_dtypes.finfo(DTYPES[dtype]).eps) / 2
        np.testing.assert_allclose(runs[DTYPES[dtype]][name].astype(jnp.float32), x, rtol=half + 1e-5, atol=1e-5)


# --- the master that is there by default


def started(dtype, **options):
    kernel, params = jk.schedule_free_adamw(0.05, **options), {"w": jnp.linspace(-1, 1, 9).astype(dtype)}
    state = kernel.init(params)
    for i in range(3):
        params, state = kernel.step(params, state, {"w": jnp.full(9, 0.1 * i, dtype)}, donate=False)
    return kernel, params, state


@every_dtype
def test_a_state_that_was_saved_without_masters_loads(dtype):
    """The parameters stand for them, and nothing is told, as nothing is lost."""
    _, params, state = started(dtype, master_weights=None)
    assert "master" not in state.slots
    kernel = jk.schedule_free_adamw(0.05)
    loaded = checkpoint.from_dict(kernel, params, checkpoint.to_dict(state))
    np.testing.assert_array_equal(loaded.slots["master"]["w"], params["w"].astype(jnp.float32))
    for name, tree in state.slots.items():
        np.testing.assert_array_equal(loaded.slots[name]["w"], tree["w"])


@every_dtype
def test_lists_without_masters_are_taken(dtype):
    """Keras's own, and those of `master_weights=None`."""

    def trained(**options):
        v = jk.Variable(np.linspace(-1, 1, 9), dtype=dtype, name="v")
        optimizer = jk.ScheduleFreeAdamW(0.05, **options)
        for i in range(3):
            optimizer.apply([np.full(9, 0.1 * i)], [v])
        return v, optimizer

    old, before = trained(master_weights=None)
    new, after = trained()
    assert len(after.variables) == len(before.variables) + 1
    after.set_weights([2 * x for x in before.get_weights()])
    np.testing.assert_array_equal(after.get_slot(new, "momentum"), 2 * np.asarray(before.get_slot(old, "momentum")))
    store = {}
    before.save_own_variables(store)
    after.load_own_variables(store)
    np.testing.assert_array_equal(after.get_slot(new, "momentum"), before.get_slot(old, "momentum"))
    with pytest.raises(ValueError, match="`weights` must have 4 elements"):
        after.set_weights(before.get_weights()[:-1])


@pytest.mark.parametrize("engine", ["auto", "xla"])
@pytest.mark.parametrize("form", ["float32", "bf16+16", "bf16+8"])
@every_dtype
def test_a_parameter_that_was_written_counts(dtype, form, engine):
    """A parameter that is written between two steps (loaded, tied, clipped) takes precedence over its master."""
    if form != "float32" and dtype == "float16":
        pytest.skip("corrections are of bfloat16")
    v = jk.Variable(np.ones(3), dtype=dtype)
    optimizer = jk.SGD(2.0**-14, master_weights=form, engine=engine)
    optimizer.apply([np.ones(3)], [v])
    v.assign([5, 1, -0.0])
    optimizer.apply([np.zeros(3)], [v])
    np.testing.assert_array_equal(v, [5, 1, 0])
    kernel = jk.sgd(2.0**-14, master_weights=form, engine=engine)
    params = jnp.ones(3, dtype)
    state, g = kernel.init(params), jnp.ones(3)
    for _ in range(2**6):  # each less than half of a last place
        params, state = kernel.step(params, state, g)
    np.testing.assert_array_equal(params.astype(jnp.float32), 1 - 2.0**-8)
    params, state = kernel.step(params.at[0].set(5), state, 0 * g)
    assert params[0] == 5 and abs(params[1] - 1) < 0.01


def test_configs_say_what_is_not_the_default():
    cls = jk.ScheduleFreeAdamW
    assert "master_weights" not in cls().get_config()  # Keras takes the config
    for form in ("float32", "bf16+8", None):
        made = cls.from_config(cls(master_weights=form).get_config())
        assert made.master_weights == form
    assert (
        Kernel(RULES["schedule_free_adamw"](), Options()).options.master_weights is None
    )  # the rule alone asks nothing
