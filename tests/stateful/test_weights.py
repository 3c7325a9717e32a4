"""An optimizer's state in lists: the orders of Keras 3 and of tf.keras, and the way back in."""

import warnings

import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest

import jaxopt_keras as jk
from jaxopt_keras.rules import RMSprop
from tests.stateful.facade import CLASSES, close, every_class, in_keras, refused, same, some_grads, two, unchanged

SWITCHES = {
    "SGD": {"momentum": 0.9},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Adam": {"amsgrad": True},
    "AdamW": {"amsgrad": True},
}


def built(name, **arguments):
    optimizer, variables = CLASSES[name](**arguments), two()
    optimizer.build(variables)
    return optimizer, variables


# --- variables: Keras 3 -----------------------------------------------------------------------------------------------


@in_keras
@pytest.mark.parametrize("switched", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"use_ema": True}, {"learning_rate": keras.optimizers.schedules.CosineDecay(0.1, 9)}]
)
def test_variables_stand_in_keras_order(name, switched, options):
    arguments = (SWITCHES.get(name, {}) if switched else {}) | options
    optimizer, _ = built(name, **arguments)
    theirs = getattr(keras.optimizers, name)(**arguments)
    theirs.build([keras.Variable(v.numpy(), name=v.name) for v in two()])
    ours = [(v.name, tuple(v.shape)) for v in optimizer.variables]
    expected = [(v.path.split("/")[-1], tuple(v.shape)) for v in theirs.variables]
    if name == "Adafactor":  # Keras has scalar dummies for a vector, and a whole velocity beside the factors
        ours, expected = ours[:-3], expected[:-6]
    elif name == "Nadam":  # whose scalar Keras calls `variable`
        assert ours.pop() == ("u_product", ()) and expected.pop()[0].startswith("variable")
    assert [shape for _, shape in ours] == [shape for _, shape in expected]
    assert [n for n, _ in ours] == [n for n, _ in expected]


def test_adafactor_keeps_no_whole_velocity_of_what_it_factors():
    optimizer, _ = built("Adafactor")
    assert [(v.name, v.shape) for v in optimizer.variables][2:] == [
        ("kernel_row", (2,)),
        ("kernel_column", (3,)),
        ("bias_velocity", (3,)),
    ]


def test_accumulators_stand_where_keras_has_them():
    optimizer, _ = built("Adam", gradient_accumulation_steps=2)
    theirs = keras.optimizers.Adam(gradient_accumulation_steps=2)
    theirs.build([keras.Variable(v.numpy(), name=v.name) for v in two()])
    assert [v.shape for v in optimizer.variables][:-1] == [tuple(v.shape) for v in theirs.variables]
    assert optimizer.variables[-1].name == "micro_step"  # ours: Keras's `iterations` counts calls


def test_variables_is_a_list_that_can_be_called():
    optimizer, _ = built("Adam")
    assert isinstance(optimizer.variables, list)
    assert [v.path for v in optimizer.variables()] == [v.path for v in optimizer.variables]
    assert optimizer.weights() == optimizer.weights
    assert [v.name for v in jk.Adam().variables] == ["iteration", "learning_rate"]
    assert [v.name for v in jk.Adam(lambda step: 0.1).variables] == ["iteration"]


def test_a_schedule_has_no_variable_and_a_number_has():
    optimizer, _ = built("SGD", learning_rate=0.5)
    optimizer.learning_rate = lambda step: 0.25
    assert [v.name for v in optimizer.variables] == ["iteration"]
    optimizer.learning_rate = 0.125
    assert [v.name for v in optimizer.variables] == ["iteration", "learning_rate"]


def test_views_show_what_is_there_and_can_be_assigned():
    optimizer, (kernel, bias) = built("Adam")
    iteration, rate, momentum, *_ = optimizer.variables
    for i in range(2):
        optimizer.apply(some_grads(i), [kernel, bias])
    assert int(iteration) == 2 and np.any(momentum)
    momentum.assign(jnp.zeros((2, 3)))
    rate.assign(0.5)
    iteration.assign_add(3)
    assert not np.any(optimizer.get_slot(kernel, "momentum")) and float(optimizer.learning_rate) == 0.5
    assert optimizer.iterations == 5
    assert optimizer.variables[2] is momentum  # one view for one place
    with refused(ValueError, r"has shape \(2, 3\).* Received: a value of shape \(3,\)", optimizer, kernel):
        momentum.assign(jnp.ones(3))
    with refused(TypeError, "is real", optimizer, kernel):
        momentum.assign(np.ones((2, 3), complex))
    with refused(TypeError, "takes an array of numbers. Received: 'abc'", optimizer, kernel):
        momentum.assign("abc")


# --- weights: tf.keras ------------------------------------------------------------------------------------------------

LEGACY = {  # facts about tf.keras's optimizers, measured
    ("SGD", ""): [],
    ("SGD", "switched"): ["kernel_momentum", "bias_momentum"],
    ("RMSprop", ""): ["kernel_velocity", "bias_velocity"],
    ("RMSprop", "switched"): [
        f"{v}_{s}" for s in ("velocity", "momentum", "average_gradient") for v in ("kernel", "bias")
    ],
    ("Adam", ""): [f"{v}_{s}" for s in ("momentum", "velocity") for v in ("kernel", "bias")],
    ("Adam", "switched"): [f"{v}_{s}" for s in ("momentum", "velocity", "velocity_hat") for v in ("kernel", "bias")],
    ("Adamax", ""): [f"{v}_{s}" for s in ("momentum", "norm") for v in ("kernel", "bias")],
    ("Adadelta", ""): [f"{v}_{s}" for s in ("accumulated_grad", "accumulated_delta_var") for v in ("kernel", "bias")],
    ("Adagrad", ""): ["kernel_accumulator", "bias_accumulator"],
    ("Nadam", ""): ["u_product"] + [f"{v}_{s}" for s in ("momentum", "velocity") for v in ("kernel", "bias")],
    ("Ftrl", ""): [f"{v}_{s}" for v in ("kernel", "bias") for s in ("accumulator", "linear")],
}


@pytest.mark.parametrize(("name", "setting"), LEGACY)
def test_weights_stand_in_the_order_of_tf_keras(name, setting):
    optimizer, _ = built(name, **(SWITCHES[name] if setting else {}))
    assert [v.name for v in optimizer.weights] == ["iteration", *LEGACY[name, setting]]
    assert [w.shape for w in optimizer.get_weights()] == [v.shape for v in optimizer.weights]
    assert all(type(w) is np.ndarray for w in optimizer.get_weights())


def test_what_tf_keras_lacked_comes_last():
    optimizer, _ = built("Nadam", use_ema=True, gradient_accumulation_steps=2)
    names = [v.name for v in optimizer.weights]
    assert names[:3] == ["iteration", "u_product", "kernel_momentum"]
    assert names[6:] == [
        "kernel_average", "bias_average", "kernel_gradient_accumulator", "bias_gradient_accumulator", "micro_step"
    ]  # fmt: skip


def test_set_weights_of_the_documentation():
    kernel, bias = jk.Variable(np.zeros((20, 10))), jk.Variable(np.zeros(10))
    optimizer = jk.RMSprop()
    optimizer.build([kernel, bias])
    optimizer.set_weights([np.array(10), np.ones([20, 10]), np.zeros([10])])
    assert optimizer.iterations == 10
    assert np.all(optimizer.get_slot(kernel, "velocity").numpy() == 1)


@every_class
def test_weights_of_one_are_those_of_another(name):
    arguments = SWITCHES.get(name, {}) | {"use_ema": True}
    (one, v), (two_, w) = built(name, **arguments), built(name, **arguments)
    for i in range(3):
        one.apply(some_grads(i), v)
    weights = one.get_weights()
    two_.set_weights(weights)
    for a, b in zip(w, v, strict=True):
        a.assign(b)
    same(two_.get_weights(), weights)
    one.apply(some_grads(), v)
    two_.apply(some_grads(), w)
    same([x.numpy() for x in w], [x.numpy() for x in v])
    for x in weights:
        x[...] = 0  # it was a copy
    assert two_.iterations == 4


def test_set_weights_refuses():
    unbuilt = jk.RMSprop()
    with refused(ValueError, r"`set_weights` needs a built optimizer. Call `build\(variables\)`", unbuilt):
        unbuilt.set_weights([np.array(1)])
    optimizer, variables = built("RMSprop")
    optimizer.apply(some_grads(), variables)
    good = optimizer.get_weights()
    for weights, text in [
        ([], "`weights` must have 3 elements: .*kernel_velocity.* Received: 0"),
        (good[:-1], "Received: 2.*learning rate is not in this list"),
        ([*good, np.zeros(3)], "Received: 4"),
        ([good[0], good[2], good[1]], r"`kernel_velocity` must have shape \(2, 3\). Received: shape \(3,\)"),
        ([good[0], good[1].T, good[2]], r"`kernel_velocity` must have shape \(2, 3\). Received: shape \(3, 2\)"),
        ([np.array([1]), *good[1:]], r"`iteration` must have shape \(\). Received: shape \(1,\)"),
        ([np.array(1.5), *good[1:]], "`iteration` must be of dtype int32. Received: dtype float64"),
        ([good[0], good[1] * 1j, good[2]], "`kernel_velocity` must be of dtype float32. Received: dtype complex64"),
        ([good[0], good[1], np.array(["a"] * 3)], "`bias_velocity` must be of dtype float32. Received: dtype <U1"),
    ]:
        with refused(ValueError, text, optimizer, *variables):
            optimizer.set_weights(weights)
    with refused(TypeError, "`weights` must be a list", optimizer, *variables):
        optimizer.set_weights(None)


@pytest.mark.usefixtures("jax_defaults")  # optax's arithmetic promotes
def test_weights_of_an_optax_transformation():
    optimizer, variables = jk.Optimizer.from_optax(optax.adam(0.1)), two()
    optimizer.build(variables)
    optimizer.apply(some_grads(), variables)
    shapes = [w.shape for w in optimizer.get_weights()]
    assert sorted(shapes) == sorted([(), (), (2, 3), (3,), (2, 3), (3,)])
    before = [v.numpy() for v in variables]
    weights = optimizer.get_weights()
    optimizer.apply(some_grads(1), variables)
    after = [v.numpy() for v in variables]
    optimizer.set_weights(weights)
    for v, x in zip(variables, before, strict=True):
        v.assign(x)
    optimizer.apply(some_grads(1), variables)
    same([v.numpy() for v in variables], after)


@pytest.mark.usefixtures("jax_defaults")
def test_random_keys_are_numbers_in_lists():
    import jax

    optimizer, variables = jk.Optimizer.from_optax(optax.noisy_sgd(0.1, key=jax.random.key(3))), two()
    optimizer.apply(some_grads(), variables)
    weights, before = optimizer.get_weights(), [v.numpy() for v in variables]
    optimizer.apply(some_grads(), variables)
    after = [v.numpy() for v in variables]
    optimizer.set_weights(weights)
    for v, x in zip(variables, before, strict=True):
        v.assign(x)
    optimizer.apply(some_grads(), variables)
    same([v.numpy() for v in variables], after)


# --- stores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Adam", "Nadam", "RMSprop", "Ftrl"])
def test_stores_are_keras_own(name):
    theirs = getattr(keras.optimizers, name)(0.1)
    theirs.build([keras.Variable(v.numpy(), name=v.name) for v in two()])
    for i, v in enumerate(theirs.variables):
        v.assign(np.full(v.shape, i + 1))
    store = {}
    theirs.save_own_variables(store)
    optimizer, variables = built(name)
    optimizer.load_own_variables(store)
    ours = {}
    optimizer.save_own_variables(ours)
    same(ours, {k: np.asarray(v) for k, v in store.items()})
    assert optimizer.iterations == 1 and optimizer.learning_rate == 2
    optimizer.apply(some_grads(), variables)
    assert ours["0"] == 1  # a copy


def test_load_own_variables_refuses():
    optimizer, variables = built("Adam")
    optimizer.apply(some_grads(), variables)
    store = {}
    optimizer.save_own_variables(store)
    with unchanged(optimizer, *variables), pytest.warns(UserWarning, match="it has 6, and the store has 2. Build it"):
        optimizer.load_own_variables({"0": np.array(1), "1": np.array(0.1)})
    for change, text in [
        ({"2": np.ones(3)}, r"`kernel_momentum` must have shape \(2, 3\). Received: shape \(3,\)"),
        ({"0": np.array(0.5)}, "`iteration` must be of dtype int32. Received: dtype float64"),
    ]:
        with refused(ValueError, text, optimizer, *variables):
            optimizer.load_own_variables(store | change)
    with refused(KeyError, "'0'", optimizer, *variables):
        optimizer.load_own_variables({str(i + 1): x for i, x in enumerate(store.values())})


# --- slots ------------------------------------------------------------------------------------------------------------


def test_slots():
    optimizer, (kernel, bias) = built("Adam")
    assert optimizer.get_slot_names() == ["momentum", "velocity"]
    own = optimizer.add_slot(kernel, "own", "ones")
    assert np.all(own.numpy() == 1) and own.shape == (2, 3) and own.path == f"{optimizer.name}/kernel_own"
    own.assign_add(1)
    assert optimizer.add_slot(kernel, "own") is own is optimizer.get_slot(kernel, "own")  # once made it stays
    optimizer.add_slot(bias, "aside", initializer=lambda shape, dtype: jnp.full(shape, 7, dtype), shape=(2,))
    optimizer.add_slot(bias, "a_number", initializer=3)
    optimizer.add_slot(bias, "an_array", initializer=np.arange(3))
    optimizer.add_slot(bias, "keras", initializer=keras.initializers.Ones())
    assert optimizer.get_slot(bias, "aside").numpy().tolist() == [7, 7]
    assert optimizer.get_slot(bias, "a_number").numpy().tolist() == [3, 3, 3]
    assert optimizer.get_slot(bias, "an_array").numpy().tolist() == [0, 1, 2]
    assert optimizer.get_slot(bias, "keras").numpy().tolist() == [1, 1, 1]
    names = ["momentum", "velocity", "own", "aside", "a_number", "an_array", "keras"]
    assert optimizer.get_slot_names() == names
    optimizer.apply(some_grads(), [kernel, bias])
    assert optimizer.get_slot_names() == names and np.all(own.numpy() == 2)
    assert [v.name for v in optimizer.variables if "own" in v.name] == ["kernel_own"]


def test_a_slot_of_ones_own_survives_a_step():
    w = jk.Variable(np.zeros(2), name="w")
    optimizer = jk.Adam(0.1)
    optimizer.add_slot(w, "mine", "ones")
    optimizer.apply_gradients([(np.ones(2), w)])
    assert optimizer.get_slot(w, "mine").numpy().tolist() == [1, 1]


def test_slots_of_a_new_variable():
    optimizer = jk.SGD()
    slot = optimizer.add_slot(jk.Variable(np.ones(3), name="new"), "aside")
    assert slot.name == "new_aside" and optimizer.get_slot_names() == ["aside"]


def test_slots_that_are_not_there():
    optimizer, (kernel, bias) = built("Adam")
    with refused(KeyError, "`kernel` has no slot `rms`. Its slots: .*momentum.*velocity", optimizer, kernel):
        optimizer.get_slot(kernel, "rms")
    with refused(KeyError, "`other` is not registered in adam.* Registered: .*kernel.*bias", optimizer, kernel):
        optimizer.get_slot(jk.Variable(1.0, name="other"), "momentum")
    with refused(TypeError, "A variable must be", optimizer, kernel):
        optimizer.get_slot(1.0, "momentum")


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"slot_name": 1}, ValueError, "`slot_name` must be a string"),
        ({"initializer": "glorot"}, ValueError, "`initializer`.* Received: initializer='glorot'"),
        (
            {"initializer": np.ones(2)},
            ValueError,
            r"`initializer` must give an array of shape \(3,\). Received: shape \(2,\)",
        ),
        ({"initializer": object()}, TypeError, "`initializer` takes an array of numbers"),
        ({"shape": "ab"}, TypeError, "`shape` must be a tuple of integers. Received: shape='ab'"),
        ({"shape": 3}, TypeError, "`shape` must be a tuple of integers. Received: shape=3"),
        ({"var": 1}, TypeError, "A variable must be"),
    ],
)
@pytest.mark.parametrize("known", [False, True])
def test_add_slot_refuses(arguments, error, text, known):
    optimizer, v = jk.Adam(), jk.Variable(np.ones(3))
    if known:
        optimizer.build([v])
    with refused(error, text, optimizer, v):
        optimizer.add_slot(**{"var": v, "slot_name": "own"} | arguments)


def test_variables_of_the_optimizers_own():
    optimizer, variables = built("SGD")
    count = optimizer.add_weight("count", (), jnp.int32, "ones")
    table = optimizer.add_weight(name="table", shape=[2, 2], initializer="zeros", trainable=False)
    again = optimizer.add_variable((), "zeros", name="count")
    unnamed = optimizer.add_variable(shape=(3,))
    assert (count.dtype, table.dtype, again.name, unnamed.name) == (jnp.int32, jnp.float32, "count_1", "variable")
    count.assign_add(4)
    optimizer.apply(some_grads(), variables)
    assert int(count) == 5
    assert [v.name for v in optimizer.variables][2:] == ["count", "table", "count_1", "variable"]
    with refused(TypeError, "`shape`", optimizer):
        optimizer.add_variable(3)
    with refused(TypeError, "`dtype`", optimizer):
        optimizer.add_weight("x", (), dtype="numbers")


def test_keras_ways_to_make_slots():
    optimizer, variables = built("SGD")
    m, v = optimizer.add_optimizer_variables(variables, ["m", "v"], initializer=["zeros", "ones"])
    assert [x.name for x in (*m, *v)] == ["kernel_m", "bias_m", "kernel_v", "bias_v"]
    assert np.all(v[0].numpy() == 1)
    (w, _) = optimizer.add_optimizer_variables(variables, "w")
    assert w.name == "kernel_w"
    one = optimizer.add_variable_from_reference(variables[0], name="w")  # Keras makes a new one each time
    two_ = optimizer.add_variable_from_reference(reference_variable=variables[0], initializer="ones")
    assert one.name == "kernel_w_1" and two_.shape == (2, 3) and one is not two_
    assert [x.name for x in optimizer.variables][2:8] == [
        "kernel_m", "kernel_v", "kernel_w", "kernel_w_1", "kernel_slot", "bias_m"
    ]  # fmt: skip


def test_a_step_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = jk.Optimizer.from_rule(RMSprop(momentum=0.5), use_ema=True)
        optimizer.apply(some_grads(), two())
        close(optimizer.get_weights()[0], 1)


@pytest.mark.parametrize("outer", [lambda o: o, jk.LossScaleOptimizer], ids=["plain", "wrapped"])
def test_lists_without_master_weights(outer):
    """Lists of other libraries have none: all other arrays are set, and the master weights are kept."""
    w = jk.Variable(np.ones((2, 3)), dtype="bfloat16", name="w")
    optimizer = outer(jk.Adam(0.1, master_weights="bf16+16"))
    optimizer.apply([jnp.full((2, 3), 0.3, jnp.bfloat16)], [w])
    is_master = [view.name == "w_master" for view in optimizer.weights]
    assert sum(is_master) == 1
    before = optimizer.get_weights()
    optimizer.set_weights([x + 1 for x, left_out in zip(before, is_master, strict=True) if not left_out])
    same(optimizer.get_weights(), [x if left_out else x + 1 for x, left_out in zip(before, is_master, strict=True)])
    optimizer.set_weights(before)
    same(optimizer.get_weights(), before)
