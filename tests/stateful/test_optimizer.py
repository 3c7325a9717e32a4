"""The stateful face: one step, whatever is asked of it, applies wholly or not at all."""

import contextlib
import functools
import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

import jaxopt_keras as jk
from jaxopt_keras import rules, schedules
from jaxopt_keras.stateful.state_views import without_masked
from jaxopt_keras.stateful.variable_kinds import Handle, handle
from tests.laws.cases import RULES, switched
from tests.stateful.facade import (
    CLASSES,
    KINDS,
    close,
    every_class,
    every_kind,
    refused,
    same,
    some_grads,
    two,
    unchanged,
    values,
)


def trained(optimizer, variables, steps=3, first=0):
    for i in range(first, first + steps):
        optimizer.apply(some_grads(i), variables)
    return values(variables)


# --- apply_gradients --------------------------------------------------------------------------------------------------


CALLS = {
    "zip": lambda o, g, v: o.apply_gradients(zip(g, v, strict=True)),
    "list": lambda o, g, v: o.apply_gradients([list(pair) for pair in zip(g, v, strict=True)]),
    "generator": lambda o, g, v: o.apply_gradients((g[i], v[i]) for i in range(2)),
    "name": lambda o, g, v: o.apply_gradients(zip(g, v, strict=True), name="train"),
    "name by position": lambda o, g, v: o.apply_gradients(zip(g, v, strict=True), "train", True),
    "TF 2.11": lambda o, g, v: o.apply_gradients(zip(g, v, strict=True), skip_gradients_aggregation=True),
    "TF 2.10": lambda o, g, v: o.apply_gradients(zip(g, v, strict=True), experimental_aggregate_gradients=False),
    "apply": lambda o, g, v: o.apply(g, v),
    "apply tuples": lambda o, g, v: o.apply(tuple(g), tuple(v)),
    "apply iterators": lambda o, g, v: o.apply(iter(g), iter(v)),
    "apply to all": lambda o, g, v: o.build(v) or o.apply(g),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_every_spelling_of_a_step(call):
    optimizer, variables = jk.SGD(0.5), two()
    before, grads = values(variables), some_grads()
    assert int(call(optimizer, grads, variables)) == 1 == int(optimizer.iterations)
    close(values(variables), [x - 0.5 * g for x, g in zip(before, grads, strict=True)])


def test_what_a_gradient_may_be():
    w = jk.Variable(np.zeros((2, 2), np.float32))
    optimizer = jk.SGD(1.0)
    grads = [np.ones((2, 2)), [[1, 1], [1, 1]], np.ones((2, 2), np.float16), jk.Variable(np.ones((2, 2)))]
    grads += [keras.Variable(np.ones((2, 2))), jk.IndexedSlices(np.ones((2, 2)), np.array([0, 1]))]
    for i, g in enumerate(grads):
        optimizer.apply([g], [w])
        assert w.numpy().tolist() == [[-1.0 - i] * 2] * 2


@pytest.mark.parametrize(
    "nothing", [[], (), iter(()), zip([], [], strict=True)], ids=["list", "tuple", "iterator", "zip"]
)
def test_an_empty_list_is_no_step(nothing):
    optimizer, variables = jk.Adam(), two()
    trained(optimizer, variables)
    with unchanged(optimizer, *variables):
        assert int(optimizer.apply_gradients(nothing)) == 3
    with unchanged(optimizer, *variables):
        assert int(optimizer.apply([], [])) == 3


def test_some_without_gradient_stay_with_a_warning():
    optimizer, (kernel, bias) = jk.Adam(), two()
    before = kernel.numpy()
    with pytest.warns(UserWarning, match=r"Gradients do not exist for variables \['kernel'\]") as caught:
        optimizer.apply_gradients([(None, kernel), (some_grads()[1], bias)])
    assert caught[0].filename == __file__
    same(kernel.numpy(), before)
    assert optimizer.iterations == 1 and not np.any(optimizer.get_slot(kernel, "momentum"))
    float0 = np.zeros((2, 3), jax.dtypes.float0)  # what `jax.grad` gives for integers: no gradient
    with pytest.warns(UserWarning, match="kernel"):
        optimizer.apply([float0, some_grads()[1]], [kernel, bias])
    same(kernel.numpy(), before)


# --- all or nothing ---------------------------------------------------------------------------------------------------


def broken(message):
    def constraint(x):
        raise RuntimeError(message)

    return constraint


def failures(kernel, bias):
    """Calls that must be refused: name -> (error, text, grads_and_vars)."""
    g, h = some_grads()
    new = jk.Variable(np.ones(4), name="new")
    return {
        "no iterable": (TypeError, r"`grads_and_vars` must be \(gradient, variable\) pairs.* Received: .*None", None),
        "no pairs": (TypeError, "`grads_and_vars`.* pairs.* Received: 1", [1, 2]),
        "triples": (TypeError, "`grads_and_vars`.* pairs", [(g, kernel, 1)]),
        "one pair": (TypeError, "`grads_and_vars`.* pairs", (g, kernel)),
        "only None": (ValueError, "No gradients provided for any variable", [(None, kernel), (None, new)]),
        "a shape": (ValueError, r"`kernel`.* shape \(2, 3\).* Received: \(3,\)", [(h, bias), (h, kernel)]),
        "a new one's shape": (ValueError, r"`new`.* shape \(4,\).* Received: \(3,\)", [(g, kernel), (h, new)]),
        "rows": (
            ValueError,
            r"`kernel`.*\(2, 3\).* Received: IndexedSlices of values \(1, 2\)",
            [(jk.IndexedSlices(np.ones((1, 2)), np.array([0])), kernel)],
        ),
        "text": (TypeError, "gradient of `bias` must be an array of numbers", [(g, kernel), ("abc", bias)]),
        "complex": (TypeError, "gradient of `bias` must be real", [(g, new_like(kernel)), (np.array(h) + 1j, bias)]),
        "no variable": (TypeError, r"must be a `jaxopt_keras.Variable`.* Wrap an array", [(g, kernel), (h, h)]),
        "twice": (ValueError, "Each variable may occur once. Received: `bias` twice", [(h, bias), (h, bias)]),
        "integers": (TypeError, "`count`", [(g, kernel), (np.ones(()), jk.Variable(1, name="count"))]),
        "a constraint": (RuntimeError, "no", [(g, kernel), (h, jk.Variable(np.ones(3), constraint=broken("no")))]),
        "the iterator": (KeyError, "inside", failing_pairs(g, kernel)),
    }


def new_like(v):
    return jk.Variable(v.numpy(), name="like")


def failing_pairs(*pair):
    yield pair
    raise KeyError("inside")


@pytest.mark.parametrize("trained_before", [False, True])
@pytest.mark.parametrize("case", failures(*two()))
def test_a_refused_step_changes_nothing(case, trained_before):
    variables = two()
    optimizer = jk.Adam(weight_decay=0.1, clipnorm=1.0)
    if trained_before:
        trained(optimizer, variables)
    error, text, pairs = failures(*variables)[case]
    with refused(error, text, optimizer, *variables):
        optimizer.apply_gradients(pairs)
    trained(optimizer, variables)  # and works afterwards


def test_a_warning_turned_error_changes_nothing():
    optimizer, variables = jk.Adam(), two()
    with refused(UserWarning, "Gradients do not exist", optimizer, *variables):
        optimizer.apply([None, some_grads()[1]], variables)


@pytest.mark.parametrize(
    ("grads", "variables", "error", "text"),
    [
        ([1.0], None, ValueError, "needs a built optimizer"),
        (None, [], TypeError, "`grads` must be a list. Received: grads=None"),
        ([1.0, 1.0], [jk.Variable(1.0)], ValueError, "`grads` must hold one gradient for each.* 2 gradients for 1"),
        ([1.0], jk.Variable([1.0]), TypeError, "`trainable_variables` must be a list"),
        ({"w": 1.0}, [jk.Variable(1.0)], TypeError, "`grads` must be a list"),
    ],
)
def test_apply_refuses(grads, variables, error, text):
    optimizer = jk.SGD()
    with refused(error, text, optimizer):
        optimizer.apply(grads, variables)


@pytest.mark.parametrize("transform", [jax.jit, jax.grad, jax.vmap], ids=lambda f: f.__name__)
def test_inside_a_transformation_nothing_leaks(transform):
    optimizer, w = jk.Adam(), jk.Variable(np.zeros(()), name="w")
    new = jk.Variable(np.zeros(()))

    def step(g, variables):
        optimizer.apply([g] * len(variables), variables)
        return g

    g = jnp.ones((2,) if transform is jax.vmap else ())
    for variables in ([w], [w, new]):
        optimizer.apply([jnp.ones(())], [w])
        with refused(TypeError, "stateless_apply", optimizer, w, new):
            transform(functools.partial(step, variables=variables))(g)
    if transform is jax.jit:
        with refused(TypeError, "stateless_apply", optimizer, w, new):
            transform(lambda: (optimizer.build([new]), 0)[1])()
        with refused(TypeError, "`w` cannot be assigned inside", optimizer, w):
            transform(lambda x: (w.assign(x), 0)[1])(jnp.ones(()))
        with refused(TypeError, "cannot be assigned inside", optimizer, w):
            transform(lambda x: (optimizer.get_slot(w, "momentum").assign(x), 0)[1])(jnp.ones(()))


# --- variables --------------------------------------------------------------------------------------------------------


@every_kind
def test_every_kind_of_variable(kind):
    ours, theirs = two(), two(kind)
    close(trained(jk.Adam(0.1), theirs), trained(jk.Adam(0.1), ours))


def test_kinds_mixed():
    variables = [make(np.ones(3, np.float32), f"v_{kind}") for kind, make in KINDS.items()]
    optimizer = jk.Adam(0.1, use_ema=True)
    for i in range(3):
        optimizer.apply([some_grads(i)[1]] * 4, variables)
    first, *rest = values(variables)
    for other in rest:
        same(first, other)
    optimizer.finalize_variable_values(variables)
    assert np.any(values(variables)[0] != first)


@every_kind
def test_dtypes_stay(kind):
    variables = two(kind, jnp.bfloat16)
    optimizer = jk.AdamW(0.1, use_ema=True)
    before = values(variables)
    trained(optimizer, variables)
    optimizer.finalize_variable_values(variables)
    assert all(v.dtype == "bfloat16" for v in values(variables))
    assert all(np.any(a != b) for a, b in zip(before, values(variables), strict=True))
    assert all(v.dtype in ("float32", "int32") for v in optimizer.variables)


def test_new_variables_join():
    (kernel, bias), other = two(), jk.Variable(np.ones(3), name="other")
    optimizer, alone = jk.Adam(0.1), jk.Adam(0.1)
    trained(optimizer, [kernel, bias])
    expected = kernel.numpy()
    for i in range(3):
        optimizer.apply([some_grads(i)[1]], [other])
    same(kernel.numpy(), expected)
    twin = jk.Variable(np.ones(3))
    alone.iterations = 3  # an optimizer has one clock
    for i in range(3):
        alone.apply([some_grads(i)[1]], [twin])
    same(other.numpy(), twin.numpy())
    assert [v.name for v in optimizer.variables][2:] == [
        f"{v}_{slot}" for v in ("kernel", "bias", "other") for slot in ("momentum", "velocity")
    ]


def test_subsets():
    optimizer, (kernel, bias) = jk.Adam(0.1), two()
    optimizer.build([kernel, bias])
    optimizer.apply([some_grads()[1]], [bias])
    assert kernel.numpy().ravel().tolist() == two()[0].numpy().ravel().tolist()
    assert optimizer.iterations == 1
    with warnings.catch_warnings():
        optimizer.apply([some_grads()[0]], [kernel])
    assert not np.any(kernel.numpy() == two()[0].numpy())


def test_two_optimizers_share_variables():
    variables, twins = two(), two()
    a, b = jk.Adam(0.1), jk.SGD(0.1, momentum=0.9)
    for i in range(3):
        a.apply(some_grads(i), variables)
        b.apply(some_grads(i), variables)
    p, q = jk.adam(0.1), jk.sgd(0.1, momentum=0.9)
    params = dict(zip("ab", values(twins), strict=True))
    s, t = p.init(params), q.init(params)
    for i in range(3):
        grads = dict(zip("ab", some_grads(i), strict=True))
        params, s = p.step(params, s, grads, donate=False)
        params, t = q.step(params, t, grads, donate=False)
    close(values(variables), list(params.values()))


def test_equal_names_are_told_apart():
    a, b = jk.Variable(np.zeros(2), name="w"), jk.Variable(np.zeros(2), name="w")
    optimizer = jk.SGD(1.0, momentum=0.5)
    optimizer.apply([np.ones(2), 2 * np.ones(2)], [a, b])
    assert optimizer.get_slot(a, "momentum").numpy().tolist() == [-1, -1]
    assert optimizer.get_slot(b, "momentum").numpy().tolist() == [-2, -2]


# --- donation: what was handed out stays ------------------------------------------------------------------------------


@every_kind
def test_values_handed_out_stay(kind):
    variables = two(kind)
    optimizer = jk.Adam(0.1, use_ema=True)
    optimizer.build(variables)
    old = [v[...] if kind == "ref" else v.get_value() if kind == "nnx" else v.value for v in variables]
    views = [np.asarray(v[...] if kind == "ref" else v) for v in variables]
    slots = [v.value for v in optimizer.variables]
    state, grads = optimizer.state, some_grads()
    first = jax.tree.map(np.array, (old, views, slots, state, grads))
    for _ in range(3):
        optimizer.apply(grads, variables)
    same(jax.tree.map(np.array, (old, views, slots, state, grads)), first)


@every_kind
def test_numpy_views_stay(kind):
    (v,) = variables = [KINDS[kind](np.ones(5000, np.float32), "v")]
    view = np.asarray(v[...] if kind == "ref" else v)  # the only reference to the array
    optimizer = jk.SGD(1.0, momentum=0.5)
    for _ in range(3):
        optimizer.apply([jnp.ones(5000)], variables)
    assert np.all(view == 1)


def test_what_was_assigned_stays_the_givers():
    w, twin = jk.Variable(np.zeros(3)), jk.Variable(np.zeros(3))
    optimizer = jk.Adam()
    optimizer.build([w, twin])
    given = jnp.ones(3)
    for v in (w, twin, *(s for s in optimizer.variables if s.shape)):
        v.assign(given)  # one array for all of them
    optimizer.state = state = optimizer.state
    for _ in range(2):
        optimizer.apply([np.ones(3)] * 2, [w, twin])
    assert given.tolist() == [1, 1, 1]
    assert not any(x.is_deleted() for x in jax.tree.leaves(state))


def test_numpy_memory_stays_the_givers():
    def aligned(n=1 << 16):  # as XLA likes it: it would use the memory itself
        raw = np.zeros(4 * n + 64, np.uint8)
        return raw[(-raw.ctypes.data) % 64 :][: 4 * n].view(np.float32)

    w = jk.Variable(aligned(), name="w")
    optimizer = jk.SGD(1.0, momentum=0.5)
    optimizer.build([w])
    for i in range(20):
        value, slot, g = arrays = [aligned(), aligned(), aligned()]
        g[:] = 1
        w.assign(value)
        optimizer.set_weights([np.array(i), slot])
        optimizer.apply([g], [w])
        for x in arrays:
            x[:] = 7  # the owner goes on writing
        assert np.all(w.numpy() == -1) and np.all(optimizer.get_weights()[1] == -1)
        assert all(np.all(x == 7) for x in arrays)


def test_a_copied_variable_is_its_own():
    import copy

    w = jk.Variable(np.ones(4096))
    twins = [copy.copy(w), copy.deepcopy(w), jk.Variable(w), jk.Variable(w.value)]
    optimizer = jk.SGD(1.0)
    for _ in range(3):
        optimizer.apply([np.ones(4096)], [w])
    assert all(np.all(t.numpy() == 1) for t in twins)
    array = np.array(w)
    array[:] = 5
    assert np.all(w.numpy() == -2)


# --- one compiled call ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def counted(optimizer):
    """The calls of compiled functions by the optimizer."""
    kernel = optimizer._kernel()
    calls = []

    def count(name, function):
        return lambda *args, **kwargs: (calls.append(name), function(*args, **kwargs))[1]

    original = kernel.compiled
    functions = {n: count(n, f) for n, f in vars(original).items()}
    kernel.__dict__["compiled"] = SimpleNamespace(**functions, on=lambda name, *_: functions[name])
    try:
        yield calls
    finally:
        kernel.__dict__["compiled"] = original


@pytest.mark.parametrize("n", [1, 7, 50])
def test_a_step_is_one_call_and_copies_nothing(n, monkeypatch):
    variables = [jk.Variable(np.ones(3)) for _ in range(n)]
    optimizer = jk.Adam(clipnorm=1.0, weight_decay=0.1)
    optimizer.apply([jnp.ones(3)] * n, variables)
    monkeypatch.setattr(jnp, "copy", broken("copied"))
    pointers = {v.unsafe_buffer_pointer() for v in variables}
    with counted(optimizer) as calls:
        optimizer.apply([jnp.ones(3)] * n, variables)
    assert calls == ["step_donating"]
    assert {v.unsafe_buffer_pointer() for v in variables} == pointers  # in place


@pytest.mark.usefixtures("jax_defaults")  # optax's schedules promote
def test_settings_compile_nothing():
    optimizer, variables = jk.Adam(0.1, weight_decay=0.1, clipnorm=1.0, use_ema=True), two()
    trained(optimizer, variables)
    compiled = optimizer._kernel().compiled.step_donating
    before = compiled._cache_size()
    for rate in (0.2, 1, np.float32(0.3), jnp.float32(0.1), optax.cosine_decay_schedule(0.1, 10), lambda: 0.5, 0.1):
        optimizer.learning_rate = rate
        optimizer.apply(some_grads(), variables)
    for name in ("beta_1", "beta_2", "epsilon", "weight_decay", "clipnorm", "ema_momentum"):
        setattr(optimizer, name, 0.5)
        optimizer.apply(some_grads(), variables)
    optimizer.iterations = 100
    trained(jk.Adam(0.7, weight_decay=0.3, clipnorm=2.0, use_ema=True), variables)  # another one, the same program
    assert optimizer._kernel().compiled.step_donating is compiled
    assert compiled._cache_size() == before


def test_take_copies_only_what_others_hold():
    w = jk.Variable(np.ones(3))
    one = handle(w)
    assert isinstance(one, Handle) and one.take() is w._value
    held = w.value
    assert one.take() is not held
    del held
    assert one.take() is w._value


# --- learning rates and other settings --------------------------------------------------------------------------------


class Halving:
    def __init__(self):
        self.rate = 1.0

    def __call__(self):
        self.rate /= 2
        return self.rate


RATES = {
    "float": (0.5, [0.5, 0.5]),
    "int": (1, [1, 1]),
    "numpy": (np.float32(0.5), [0.5, 0.5]),
    "numpy float64": (np.float64(0.5), [0.5, 0.5]),
    "0-d array": (np.array(0.5), [0.5, 0.5]),
    "jax": (jnp.float32(0.5), [0.5, 0.5]),
    "jax bfloat16": (jnp.bfloat16(0.5), [0.5, 0.5]),
    "schedule": (schedules.ExponentialDecay(1.0, 1, 0.5), [1, 0.5]),
    "integer schedule": (schedules.ExponentialDecay(1, 1, 0.5), [1, 0.5]),
    "Python schedule": (lambda step: 1 / (step + 1), [1, 0.5]),
    "optax schedule": (optax.exponential_decay(1.0, 1, 0.5), [1, 0.5]),
    "function": (Halving, [0.5, 0.25]),
}


@pytest.mark.usefixtures("jax_defaults")  # optax's schedules promote
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("when", ["constructor", "setter", "lr"])
def test_learning_rates(rate, when):
    given, expected = RATES[rate]
    given = given() if given is Halving else given
    optimizer = jk.SGD(given if when == "constructor" else 7.0)
    if when != "constructor":
        setattr(optimizer, "learning_rate" if when == "setter" else "lr", given)
    w = jk.Variable(0.0)
    if not isinstance(given, Halving):
        assert float(optimizer.learning_rate) == float(optimizer.lr) == expected[0]
    seen = []
    for _ in expected:
        before = float(w)
        optimizer.apply([1.0], [w])
        seen.append(before - float(w))
    assert seen == expected
    optimizer.learning_rate = 0.125  # and back again
    before = float(w)
    optimizer.apply([1.0], [w])
    assert before - float(w) == 0.125 == float(optimizer.learning_rate)


def test_a_schedule_counts_updates_and_follows_iterations():
    optimizer, w = jk.SGD(lambda step: step + 1, gradient_accumulation_steps=2), jk.Variable(0.0)
    seen = []
    for _ in range(4):
        optimizer.apply([1.0], [w])
        seen.append(float(w))
    assert seen == [0, -1, -1, -3]
    optimizer.iterations = 10
    assert float(optimizer.learning_rate) == 11
    optimizer.apply([1.0], [w])
    optimizer.apply([1.0], [w])
    assert float(w) == -14


def test_the_rate_can_be_assigned_and_computed_with():
    optimizer = jk.SGD(0.5)
    optimizer.learning_rate.assign(0.25)
    assert optimizer.learning_rate == 0.25 and optimizer.get_config()["learning_rate"] == 0.25
    optimizer.learning_rate = optimizer.learning_rate * 2
    optimizer.lr = optimizer.lr / 4
    assert float(optimizer.lr) == 0.125


def test_a_refused_setting_changes_nothing():
    optimizer, variables = jk.AdamW(0.1, clipnorm=1.0), two()
    trained(optimizer, variables)
    for name, value, error in [
        ("learning_rate", -1, ValueError),
        ("learning_rate", "fast", TypeError),
        ("learning_rate", None, TypeError),
        ("lr", np.ones(2), TypeError),
        ("beta_1", 1.5, ValueError),
        ("epsilon", None, TypeError),
        ("amsgrad", 1, TypeError),
        ("weight_decay", -1, ValueError),
        ("weight_decay", None, ValueError),
        ("clipvalue", 1.0, ValueError),
        ("gradient_accumulation_steps", 1, ValueError),
        ("use_ema", "yes", TypeError),
        ("iterations", 1.5, TypeError),
        ("iterations", -1, ValueError),
        ("iterations", [1, 2], TypeError),
        ("variant", "torch", ValueError),
    ]:
        text = "`learning_rate`" if name == "lr" else "clip" if name == "clipvalue" else f"`{name}`"
        with refused(error, text, optimizer, *variables):
            setattr(optimizer, name, value)


def test_iterations():
    optimizer, variables = jk.Adam(), two()
    assert optimizer.iterations == 0
    trained(optimizer, variables)
    assert int(optimizer.iterations) == 3 and optimizer.iterations.dtype == jnp.int32
    for value in (10, np.int64(10), jnp.int32(10), 10.0):
        optimizer.iterations = value
        assert int(optimizer.iterations) == 10
    optimizer.iterations.assign(7)
    twin, twins = jk.Adam(), two()
    twin.build(twins)
    twin.state = optimizer.state
    for v, w in zip(variables, twins, strict=True):
        w.assign(v)
    same(trained(twin, twins), trained(optimizer, variables))


CHANGES = [
    {"beta_1": 0.5},
    {"weight_decay": 0.1},
    {"clipnorm": 1.0},
    {"global_clipnorm": 0.5},
    {"clipvalue": 0.1},
    {"loss_scale_factor": 8.0},
    {"variant": "optax"},
    {"learning_rate": 0.3, "beta_2": 0.9, "epsilon": 0.1},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_setting_changed_later_is_as_if_set_at_first(change):
    late, early, a, b = jk.Adam(0.1), jk.Adam(**{"learning_rate": 0.1} | change), two(), two()
    late.build(a)
    for name, value in change.items():
        setattr(late, name, value)
        assert getattr(late, name) == (np.float32(value) if name == "learning_rate" else value)
    same(trained(late, a), trained(early, b))
    same(late.get_weights(), early.get_weights())


def test_a_feature_switched_on_later_makes_its_slots_and_keeps_the_others():
    optimizer, variables = jk.Adam(0.1), two()
    trained(optimizer, variables)
    momentum = optimizer.get_slot(variables[0], "momentum").numpy()
    own = optimizer.add_slot(variables[0], "own", "ones")
    optimizer.add_weight("count", (), initializer="ones")
    optimizer.use_ema = True
    optimizer.amsgrad = True
    optimizer.gradient_accumulation_steps = 2
    same(optimizer.get_slot(variables[0], "momentum").numpy(), momentum)
    same(optimizer.get_slot(variables[0], "average").numpy(), variables[0].numpy())
    assert optimizer.get_slot_names() == [
        "momentum", "velocity", "velocity_hat", "own", "average", "gradient_accumulator"
    ]  # fmt: skip
    assert optimizer.iterations == 3
    trained(optimizer, variables, 4)
    assert optimizer.iterations == 5 and np.all(own.numpy() == 1)
    optimizer.use_ema = optimizer.amsgrad = False
    optimizer.gradient_accumulation_steps = None
    assert optimizer.get_slot_names() == ["momentum", "velocity", "own"]
    assert "count" in [v.name for v in optimizer.variables]
    trained(optimizer, variables)


def test_momentum_switched_on_and_off():
    optimizer, variables = jk.SGD(0.1), two()
    trained(optimizer, variables)
    optimizer.momentum = 0.9
    trained(optimizer, variables)
    assert np.any(optimizer.get_slot(variables[0], "momentum"))
    optimizer.momentum = 0
    trained(optimizer, variables)
    assert optimizer.get_slot_names() == []


@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 4), (3, None), (None, 2)])
def test_a_new_accumulation_window_begins_with_its_length(before, after):
    optimizer, w = jk.SGD(1.0, gradient_accumulation_steps=before), jk.Variable(0.0)
    for _ in range(before - 1 if before else 1):
        optimizer.apply([100.0], [w])
    optimizer.gradient_accumulation_steps = after
    w.assign(0.0)
    for _ in range(after or 1):
        assert float(w) == 0
        optimizer.apply([2.0], [w])
    assert float(w) == -2


# --- what surrounds the rule ------------------------------------------------------------------------------------------


def test_exclude_from_weight_decay():
    def moved(setup, built=False):
        a, b = jk.Variable(np.ones(2), name="dense/kernel"), jk.Variable(np.ones(2), name="dense/bias")
        optimizer = jk.SGD(0.5, weight_decay=0.5)
        if built:
            optimizer.apply([np.zeros(2)] * 2, [a, b])
            a.assign(np.ones(2))
            b.assign(np.ones(2))
        setup(optimizer, a, b)
        optimizer.apply([np.zeros(2)] * 2, [a, b])
        return [bool(np.any(v.numpy() != 1)) for v in (a, b)]

    for built in (False, True):
        assert moved(lambda o, a, b: None, built) == [True, True]
        assert moved(lambda o, a, b: o.exclude_from_weight_decay([b]), built) == [True, False]
        assert moved(lambda o, a, b: o.exclude_from_weight_decay(var_list=(a, b)), built) == [False, False]
        assert moved(lambda o, a, b: o.exclude_from_weight_decay(var_names=["bias"]), built) == [True, False]
        assert moved(lambda o, a, b: o.exclude_from_weight_decay(var_names=["^b", "^k"]), built) == [False, False]
        assert moved(lambda o, a, b: o.exclude_from_weight_decay([a], ["^bias$"]), built) == [False, False]
        with pytest.warns(UserWarning, match="'dense' matches no parameter"):  # a name, not a path
            assert moved(lambda o, a, b: o.exclude_from_weight_decay(var_names=["dense"]), built) == [True, True]

    def twice(o, a, b):
        o.exclude_from_weight_decay([a])
        o.exclude_from_weight_decay(var_names=["bias"])  # replaces the first

    assert moved(twice) == moved(twice, built=True) == [True, False]


@pytest.mark.parametrize(("var_list", "var_names"), [([1], None), (None, 1), (None, len), (None, ["("]), (1, None)])
def test_exclude_from_weight_decay_refuses(var_list, var_names):
    optimizer, variables = jk.AdamW(), two()
    trained(optimizer, variables)
    with refused((TypeError, ValueError), "variable|expression|list", optimizer, *variables):
        optimizer.exclude_from_weight_decay(var_list, var_names)


@every_kind
def test_exclusions_by_path_see_a_parameter(kind):
    seen = []
    optimizer = jk.AdamW(exclude_from_weight_decay=lambda path, p: seen.append((path, p.ndim, p.shape)) or p.ndim < 2)
    optimizer.build(two(kind))
    optimizer._kernel()
    assert {s[1:] for s in seen} == {(2, (2, 3)), (1, (3,))}


def test_averages():
    optimizer, w = jk.SGD(1.0, use_ema=True, ema_momentum=0.5), jk.Variable(np.array(2.0), name="w")
    history = []
    for _ in range(3):
        optimizer.apply([1.0], [w])
        history.append((float(w), float(optimizer.get_slot(w, "average"))))
    assert history == [(1, 1), (0, 0.5), (-1, -0.25)]
    optimizer.finalize_variable_values([w])
    assert float(w) == -0.25
    optimizer.apply([1.0], [w])  # goes on from there
    assert float(w) == -1.25
    known, unknown = w, jk.Variable(1.0, name="unknown")
    with refused(KeyError, "`unknown` is not registered", optimizer, known):
        optimizer.finalize_variable_values([known, unknown])
    plain = jk.SGD()
    with unchanged(plain, w):
        plain.finalize_variable_values([w])


def test_averages_overwrite_and_cover_what_has_no_gradient():
    optimizer, (a, b) = jk.SGD(1.0, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2), two()
    optimizer.build([a, b])
    optimizer.apply([some_grads()[1]], [b])
    first = b.numpy()
    a.assign(a + 1)
    optimizer.apply([some_grads()[1]], [b])
    assert np.any(optimizer.get_slot(a, "average").numpy() != two()[0].numpy())
    same(b.numpy(), optimizer.get_slot(b, "average").numpy())
    close(b.numpy(), first - some_grads()[1] / 2)


@pytest.mark.parametrize("kind", ["ours", "keras"])
def test_constraints_of_variables(kind):
    a, b = two(kind)
    b.constraint = lambda x: jnp.clip(x, 0.5, None)
    optimizer = jk.SGD(10.0)
    optimizer.apply([np.ones((2, 3)), np.ones(3)], [a, b])
    assert values([a, b])[1].tolist() == [0.5] * 3 and values([a, b])[0].max() < 0


def test_gradient_accumulation():
    optimizer, variables = jk.Adam(0.1, gradient_accumulation_steps=3), two()
    twin, twins = jk.Adam(0.1), two()
    for update in range(2):
        grads = [some_grads(3 * update + i) for i in range(3)]
        for i, g in enumerate(grads):
            assert int(optimizer.apply(g, variables)) == update + (i == 2)
        twin.apply([sum(gs) / 3 for gs in zip(*grads, strict=True)], twins)
        close(values(variables), values(twins))


def test_loss_scale():
    optimizer, w = jk.SGD(1.0, loss_scale_factor=4.0), jk.Variable(0.0)
    assert optimizer.scale_loss(2.0) == 8.0 and float(optimizer.scale_loss(jnp.float32(2))) == 8.0
    optimizer.apply([optimizer.scale_loss(1.0)], [w])
    assert float(w) == -1
    optimizer.loss_scale_factor = 2.0
    optimizer.apply([optimizer.scale_loss(1.0)], [w])
    assert float(w) == -2
    assert jk.SGD().scale_loss(3) == 3


# --- pure equals stateful ---------------------------------------------------------------------------------------------

OPTIONS = {
    "averaged": {
        "learning_rate": schedules.PolynomialDecay(0.1, 5), "weight_decay": 0.1, "exclude_from_weight_decay": "bias",
        "use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2, "global_clipnorm": 1.0,
    },
    "accumulated": {
        "gradient_accumulation_steps": 2, "clipvalue": 0.3, "loss_scale_factor": 2.0,
        "constraints": {"kernel": jnp.abs},
    },
}  # fmt: skip
BY_NAME = {
    rule.__name__: (rule, function) for rule, function in zip(RULES, jk.optimizers.FUNCTIONS.values(), strict=True)
}


def named(pair):
    return dict(zip(("kernel", "bias"), pair, strict=True))


@every_class
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_pure_equals_stateful(name, options):
    rule, function = BY_NAME[name]
    arguments = {"learning_rate": 0.05} | switched(rule) | options
    optimizer, kernel, variables = CLASSES[name](**arguments), function(**arguments), two()
    params = named(map(jnp.array, values(variables)))
    state = kernel.init(params)
    for i in range(4):
        optimizer.apply(some_grads(i), variables)
        params, state = kernel.step(params, state, named(some_grads(i)))
    close(values(variables), [params["kernel"], params["bias"]], rtol=1e-5, atol=1e-6)
    close(optimizer.state.slots, without_masked(state.slots), rtol=1e-5, atol=1e-6)
    assert int(optimizer.iterations) == int(state.count)


@every_class
def test_stateless_equals_stateful(name):
    arguments = switched(BY_NAME[name][0]) | OPTIONS["averaged"]  # whose program there is already
    optimizer, variables = CLASSES[name](**arguments), two()
    trained(optimizer, variables, 2)
    held, listed = values(variables), [v.value for v in optimizer.variables]
    for i in (2, 3):
        held, listed = optimizer.stateless_apply(listed, some_grads(i), held)
    trained(optimizer, variables, 2, first=2)
    close([np.array(x) for x in held], values(variables), rtol=1e-5, atol=1e-6)
    close([np.array(x) for x in listed], [v.numpy() for v in optimizer.variables], rtol=1e-5, atol=1e-6)


# --- stateless_apply --------------------------------------------------------------------------------------------------


def test_stateless_apply_is_pure_and_can_be_jitted():
    optimizer, variables = jk.Adam(schedules.InverseTimeDecay(0.1, 1, 1), use_ema=True), two()
    trained(optimizer, variables)
    own, params = [v.value for v in optimizer.variables], [v.value for v in variables]
    with unchanged(optimizer, *variables):
        eager = optimizer.stateless_apply(own, some_grads(), params)
        jitted = jax.jit(optimizer.stateless_apply)(own, some_grads(), params)
        scanned, _ = jax.lax.scan(
            lambda c, _: (optimizer.stateless_apply(c[1], some_grads(), c[0]), None), eager, length=2
        )
    close(eager, jitted)
    assert not any(x.is_deleted() for x in own + params)
    optimizer.apply(some_grads(), variables)
    close(eager[0], values(variables))
    close(eager[1], [v.numpy() for v in optimizer.variables])
    trained_twice = [optimizer.apply(some_grads(), variables) for _ in range(2)]
    assert len(trained_twice) == 2
    close(scanned[0], values(variables))


def test_stateless_apply_takes_variables_and_none():
    optimizer, variables = jk.SGD(1.0, momentum=0.5), two()
    optimizer.build(variables)
    params, own = optimizer.stateless_apply(optimizer.variables, [None, some_grads()[1]], variables)
    same(np.array(params[0]), variables[0].numpy())
    assert np.any(np.array(params[1]) != variables[1].numpy()) and int(own[0]) == 1


@pytest.mark.parametrize("which", ["optimizer_variables", "grads", "trainable_variables"])
def test_stateless_apply_checks_lengths(which):
    optimizer, variables = jk.Adam(), two()
    with pytest.raises(ValueError, match=r"built optimizer.*build\(variables\)"):
        optimizer.stateless_apply([], [], [])
    optimizer.build(variables)
    args = {"optimizer_variables": optimizer.variables, "grads": some_grads(), "trainable_variables": variables}
    for wrong in (args[which][:-1], [*args[which], 1.0]):
        with refused(ValueError, f"`{which}` must have .* elements. Received: {len(wrong)}", optimizer, *variables):
            optimizer.stateless_apply(**args | {which: wrong})


@pytest.mark.parametrize("mapping", ["shard_map", "pmap"])
@pytest.mark.parametrize("skip", [False, True])
def test_axis_name_sums_gradients_over_the_axis(mapping, skip):
    n = jax.device_count()
    assert n == 8
    optimizer, w = jk.SGD(1.0, axis_name="data"), jk.Variable(np.zeros(3), name="w")
    optimizer.build([w])
    own = [v.value for v in optimizer.variables]
    grads = jnp.arange(n * 3.0).reshape(n, 3)

    def step(g, params, own):
        summed = jax.lax.psum(g, "data") if skip else g  # the caller sums, or the optimizer
        return optimizer.stateless_apply(own, [summed[0]], params, skip_gradients_aggregation=skip)

    if mapping == "shard_map":
        mesh = jax.make_mesh((n,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        specs = PartitionSpec("data"), PartitionSpec(), PartitionSpec()
        step = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
        (new,), _ = jax.jit(step)(grads, [w.value], own)
    else:
        (new,), _ = jax.pmap(step, axis_name="data", in_axes=(0, None, None))(grads[:, None], [w.value], own)
        assert np.all(np.array(new) == np.array(new)[0])
        new = new[0]
    close(np.array(new), -grads.sum(0))


def test_axis_name_outside_a_mapped_function_is_no_matter():
    optimizer, w = jk.SGD(1.0, axis_name="data"), jk.Variable(0.0)
    optimizer.apply([1.0], [w])
    assert float(w) == -1


# --- odds and ends ----------------------------------------------------------------------------------------------------


def test_names():
    assert jk.SGD(name="mine").name == "mine"
    first, second = jk.RMSprop(), jk.RMSprop()
    assert first.name.startswith("rm_sprop") and first.name != second.name
    assert jk.Optimizer.from_rule(rules.Lamb()).name.startswith("lamb")
    assert [v.path for v in jk.SGD(name="a").variables] == ["a/iteration", "a/learning_rate"]


def test_attributes_that_are_not_there():
    with pytest.raises(AttributeError, match="'SGD' object has no attribute 'beta_1'"):
        _ = jk.SGD().beta_1
    foreign = jk.Optimizer.from_optax(optax.sgd(0.1))
    with pytest.raises(AttributeError, match="has no `learning_rate`.*inject_hyperparams"):
        _ = foreign.learning_rate
    with pytest.raises(AttributeError, match="has no `learning_rate` to set"):
        foreign.learning_rate = 1.0


def test_a_named_class_can_be_subclassed():
    class Tuned(jk.Adam):
        def __init__(self, **kwargs):
            super().__init__(learning_rate=0.5, **kwargs)
            self.extra = 1

        def apply(self, grads, trainable_variables=None):
            self.extra += 1
            return super().apply(grads, trainable_variables)

    tuned, variables = Tuned(beta_1=0.5), two()
    trained(tuned, variables)
    assert tuned.extra == 4 and float(tuned.learning_rate) == 0.5 and tuned.name.startswith("tuned")

    class Hooked(jk.Adam):
        def update_step(self, gradient, variable, learning_rate):
            super().update_step(gradient, variable, 0.5 * learning_rate)

    hooked, plain, a, b = Hooked(0.5), jk.Adam(0.25), two(), two()
    close(trained(hooked, a), trained(plain, b))


def test_nnx_model_trains():
    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    optimizer = jk.Adam(0.1)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
    y = x @ jnp.array([[1.0], [2.0], [3.0]])
    losses = []
    for _ in range(30):
        loss, grads = nnx.value_and_grad(lambda m: jnp.mean((m(x) - y) ** 2))(model)
        optimizer.apply_gradients([(grads.kernel[...], model.kernel), (grads.bias[...], model.bias)])
        losses.append(float(loss))
    assert losses[-1] < losses[0] / 10
