"""Errors of every public function: the message names the argument and the value received, and nothing has changed."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_keras as jk
from benchmarks.parity.peer import name_of
from jaxopt_keras import IndexedSlices, Kernel, Options, Variable, rules, schedules
from jaxopt_keras.language.rule import fields_of
from jaxopt_keras.optimizers import FUNCTIONS, RULES
from tests.stateful.facade import CLASSES, everything, values

PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
GRADS = jax.tree.map(jnp.ones_like, PARAMS)
NAN, INF = float("nan"), float("inf")
ROWS = np.ones((1, 3), np.float32)


def cases(*table):
    """A parametrized test's cases: (what is done, the argument at fault, the error)."""
    return pytest.mark.parametrize(("call", "argument", "error"), [pytest.param(*row[1:], id=row[0]) for row in table])


def refused(call, argument, error):
    with pytest.raises((TypeError, ValueError, KeyError)) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is error, f"{type(caught.value)}: {message}"
    assert f"`{argument}" in message and "Received: " in message, message
    assert not any(word in message for word in ("Tracer", "Traced", "<bound method")), message


# --- settings ---------------------------------------------------------------------------------------------------------

SETTINGS = [
    *[("weight_decay", x, ValueError) for x in (-1, NAN, INF)],
    *[("weight_decay", x, TypeError) for x in ("a", True, np.ones(2), 1j, [1], float)],
    *[("clipnorm", x, ValueError) for x in (-1, NAN)],
    *[("clipnorm", x, TypeError) for x in ("a", [1])],
    ("clipvalue", -1, ValueError),
    ("clipvalue", "a", TypeError),
    ("global_clipnorm", -1, ValueError),
    ("global_clipnorm", "a", TypeError),
    *[("use_ema", x, TypeError) for x in (1, "yes", None)],
    *[("ema_momentum", x, ValueError) for x in (1.5, -1)],
    *[("ema_momentum", x, TypeError) for x in (None, "a")],
    ("ema_overwrite_frequency", -1, ValueError),
    *[("ema_overwrite_frequency", x, TypeError) for x in (1.5, "a", True)],
    *[("loss_scale_factor", x, ValueError) for x in (0, -1)],
    ("loss_scale_factor", "a", TypeError),
    *[("gradient_accumulation_steps", x, ValueError) for x in (1, -2)],
    *[("gradient_accumulation_steps", x, TypeError) for x in (1.5, "a")],
    *[("name", x, TypeError) for x in (1, b"name")],
    ("exclude_from_weight_decay", ["("], ValueError),
    *[("exclude_from_weight_decay", x, TypeError) for x in (1, [1], {"a": 1})],
    ("constraints", {"(": abs}, ValueError),
    *[("constraints", x, TypeError) for x in (1, "w", abs, {"w": 1}, [1], [("w",)], {1: abs})],
    *[("sparse", x, ValueError) for x in ("fast", None, 1)],
    *[("axis_name", x, TypeError) for x in ("", 1.5, [1], ("a", 2))],
]
names = [f"{name}={value!r}".split(" at 0x")[0][:40] for name, value, _ in SETTINGS]  # no addresses: they vary


@pytest.mark.parametrize(("argument", "value", "error"), SETTINGS, ids=names)
def test_settings(argument, value, error):
    optimizer = jk.Adam()
    before = everything(optimizer, [])
    makers = [Options, jk.adam, jk.Adam, jk.Optimizer, lambda **kw: jk.Optimizer.from_rule(rules.Adam(), **kw)]
    makers += [lambda **kw: Kernel.from_optax(optax.identity(), **kw)]
    if argument not in ("exclude_from_weight_decay", "name"):  # a method; and a name may change
        makers += [lambda **kw: [setattr(optimizer, k, v) for k, v in kw.items()]]
    for make in makers:
        refused(lambda make=make: make(**{argument: value}), argument, error)
    assert everything(optimizer, []) == before


# All that takes an integer, a flag or a choice: a function in its place is refused where it is given.
NO_SCHEDULE = [
    (name, argument)
    for name, rule in RULES.items()
    for argument, field in (fields_of(rule) | fields_of(Options)).items()
    if not field.traced and Any not in field.types and argument != "gradient_accumulation_steps"
]


@pytest.mark.parametrize("name", RULES)
def test_only_numbers_may_be_schedules(name):
    rule, v = RULES[name], Variable(np.ones((2, 3)), name="v")
    optimizer, function = CLASSES[name](), FUNCTIONS[name_of(rule)]
    optimizer.apply([np.ones((2, 3))], [v])
    kernel, before = function(inject_hyperparams=True), everything(optimizer, [v])
    state, schedule = kernel.init(PARAMS), lambda step: 0.9
    for argument in [argument for owner, argument in NO_SCHEDULE if owner == name]:
        field = (fields_of(rule) | fields_of(Options))[argument]
        is_choice = field.choices or argument == "state_dtype"  # a choice, or a dict of them
        error = ValueError if is_choice else TypeError
        makers = [function, CLASSES[name], rule if argument in fields_of(rule) else Options]
        makers += [lambda **kw: dataclasses.replace(optimizer._rule, **kw)] if argument in fields_of(rule) else []
        makers += [lambda **kw: [setattr(optimizer, *pair) for pair in kw.items()]] if argument != "name" else []
        for make in makers:
            refused(lambda make=make, argument=argument: make(**{argument: schedule}), argument, error)
    assert everything(optimizer, [v]) == before
    for number in state.hyperparams:
        refused(lambda number=number: kernel.replaced(state, **{number: schedule}), number, TypeError)
        refused(lambda number=number: function(**{number: dict}), number, TypeError)
        refused(lambda number=number: function(**{number: lambda: 0.5}), number, TypeError)
    CLASSES[name](learning_rate=schedule), function(schedule)


@cases(
    ("two clips", lambda: Options(clipnorm=1.0, clipvalue=1.0), "clipnorm", ValueError),
    (
        "overwriting never",
        lambda: Options(use_ema=True, ema_overwrite_frequency=0),
        "ema_overwrite_frequency",
        ValueError,
    ),
    ("lazy sums", lambda: Options(sparse="lazy", gradient_accumulation_steps=2), 'sparse="lazy"', ValueError),
    ("lazy axes", lambda: Options(sparse="lazy", axis_name="data"), 'sparse="lazy"', ValueError),
    ("lazy norms", lambda: jk.lamb(sparse="lazy"), 'sparse="lazy"', ValueError),
    ("a function for a kernel", lambda: jk.adam(lambda: 0.1), "learning_rate", TypeError),
    ("AdamW without decay", lambda: jk.AdamW(weight_decay=None), "weight_decay", ValueError),
    ("adamw without decay", lambda: jk.adamw(weight_decay=None), "weight_decay", ValueError),
    ("muon, text", lambda: jk.muon(exclude_layers="a"), "exclude_layers", TypeError),
    ("muon, number", lambda: jk.muon(exclude_layers=5), "exclude_layers", TypeError),
    ("muon, numbers", lambda: jk.muon(exclude_layers=[5]), "exclude_layers", TypeError),
    ("muon, no pattern", lambda: jk.muon(exclude_layers=["("]), "exclude_layers", ValueError),
    ("ftrl of optax", lambda: jk.ftrl(variant="optax"), "variant", ValueError),
    ("from_rule", lambda: jk.Optimizer.from_rule(rules.Adam(), clip=1), "clip", TypeError),
    ("from_optax", lambda: jk.Optimizer.from_optax(optax.identity(), clip=1), "clip", TypeError),
    ("Optimizer", lambda: jk.Optimizer(beta_1=0.5), "beta_1", TypeError),
)
def test_settings_together(call, argument, error):
    refused(call, argument, error)


@pytest.mark.parametrize("make", [*CLASSES.values(), *FUNCTIONS.values()], ids=[*CLASSES, *FUNCTIONS])
def test_arguments_that_nobody_has(make):
    for name in ("lr", "learning_rat", "foo"):
        refused(lambda name=name: make(**{name: 0.1}), name, TypeError)
    for value, error in [(-1, ValueError), ("a", TypeError), (None, TypeError), ([1], TypeError), (INF, ValueError)]:
        refused(lambda value=value: make(value), "learning_rate", error)
    refused(lambda: make(variant="torch"), "variant", ValueError)
    with pytest.raises(TypeError, match="positional"):
        make(*range(50))
    if isinstance(make, type):  # as in Keras 3
        with pytest.warns(UserWarning, match="`decay` is ignored.* use a schedule"):
            make(decay=0.1)


@cases(
    ("ExponentialDecay", lambda: schedules.ExponentialDecay("a", 1, 1), "initial_learning_rate", TypeError),
    ("decay_steps", lambda: schedules.CosineDecay(0.1, 0), "decay_steps", ValueError),
    ("boundaries", lambda: schedules.PiecewiseConstantDecay([1], [1.0]), "values", ValueError),
    ("serialize", lambda: schedules.serialize(len), "schedule", TypeError),
    ("deserialize", lambda: schedules.deserialize(5), "config", TypeError),
    ("deserialize unknown", lambda: schedules.deserialize({"class_name": "X"}), "config", ValueError),
)
def test_schedules(call, argument, error):
    refused(call, argument, error)


# --- the pure face ----------------------------------------------------------------------------------------------------

ADAM = jk.adam()
STATE = ADAM.init(PARAMS)


def update(**leaves):
    return lambda: ADAM.update(GRADS | leaves, STATE, PARAMS)


@cases(
    ("Kernel(None)", lambda: Kernel(None), "rule", TypeError),
    ("Kernel(class)", lambda: Kernel(rules.Adam), "rule", TypeError),
    ("Kernel options", lambda: Kernel(rules.Adam(), {"clipnorm": 1}), "options", TypeError),
    ("from_optax", lambda: Kernel.from_optax(1), "tx", TypeError),
    ("init text", lambda: ADAM.init({"w": "a"}), "params", TypeError),
    ("init integers", lambda: ADAM.init({"w": jnp.ones(3, int)}), "w", TypeError),
    ("init one bool", lambda: ADAM.init(True), "params", TypeError),
    ("grads: another tree", lambda: ADAM.update({"w": 1}, STATE, PARAMS), "grads", ValueError),
    ("grads: None", lambda: ADAM.update(None, STATE, PARAMS), "grads", ValueError),
    ("grads: text", update(w="a"), "grads", TypeError),
    ("grads: a shape", update(w=PARAMS["b"]), "w", ValueError),
    ("grads: complex", update(w=jnp.ones((2, 3), complex)), "w", TypeError),
    ("rows: a shape", update(w=IndexedSlices(np.ones((1, 2)), np.array([0]))), "w", ValueError),
    ("rows: a dense shape", update(w=IndexedSlices(ROWS, np.array([0]), (5, 3))), "w", ValueError),
    ("rows: indices", update(w=IndexedSlices(ROWS, np.array([0.5]))), "w", TypeError),
    ("rows: None", update(w=IndexedSlices(None, None)), "w", TypeError),
    ("rows: lists", update(w=IndexedSlices([[1.0, 1.0, 1.0]], [0])), "w", TypeError),
    ("rows: text", update(w=IndexedSlices("a", "b")), "grads", TypeError),
    (
        "rows: of a scalar",
        lambda: ADAM.update(IndexedSlices(ROWS, np.array([0])), ADAM.init(jnp.ones(())), jnp.ones(())),
        "",
        ValueError,
    ),
    ("state: None", lambda: ADAM.update(GRADS, None, PARAMS), "state", TypeError),
    ("state: a tuple", lambda: ADAM.update(GRADS, (), PARAMS), "state", TypeError),
    ("state: another kernel's", lambda: ADAM.update(GRADS, jk.sgd().init(PARAMS), PARAMS), "state", ValueError),
    (
        "state: other parameters'",
        lambda: ADAM.update(GRADS, ADAM.init({"a": PARAMS["w"]}), PARAMS),
        "state",
        ValueError,
    ),
    ("step: params", lambda: ADAM.step(None, STATE, GRADS, donate=False), "state", ValueError),
    ("step: params, text", lambda: ADAM.step({"w": "a"}, STATE, GRADS, donate=False), "params", TypeError),
    ("step: grads", lambda: ADAM.step(PARAMS, STATE, {"w": 1}, donate=False), "grads", ValueError),
    ("step: optax's order", lambda: ADAM.step(GRADS, PARAMS, STATE, donate=False), "state", TypeError),
    ("replaced: a name", lambda: ADAM.replaced(STATE, beta=1), "beta", ValueError),
    ("replaced: a value", lambda: ADAM.replaced(STATE, beta_1=2.0), "beta_1", ValueError),
    ("replaced: a state", lambda: ADAM.replaced(None, beta_1=0.2), "state", TypeError),
    ("averaged: a state", lambda: ADAM.averaged(PARAMS, None), "state", TypeError),
    ("averaged: params", lambda: ADAM.averaged({"w": jnp.ones(2)}, STATE), "state", ValueError),
    ("todense", lambda: IndexedSlices(ROWS, np.array([0])).todense(), "todense", ValueError),
)
def test_pure(call, argument, error):
    refused(call, argument, error)
    assert not any(x.is_deleted() for x in jax.tree.leaves((PARAMS, GRADS, STATE)))


@pytest.mark.parametrize("constraint", [lambda x: x[0], lambda x: None], ids=["another shape", "None"])
def test_constraints_keep_the_shape(constraint):
    kernel = jk.sgd(constraints={"w": constraint})
    refused(lambda: kernel.step(PARAMS, kernel.init(PARAMS), GRADS), "w", ValueError)


# --- variables --------------------------------------------------------------------------------------------------------


@cases(
    ("None", lambda: Variable(None), "initial_value", TypeError),
    ("text", lambda: Variable("a"), "initial_value", TypeError),
    ("an object", lambda: Variable(object()), "initial_value", TypeError),
    ("ragged", lambda: Variable([[1], [1, 2]]), "initial_value", TypeError),
    ("a dict", lambda: Variable({}), "initial_value", TypeError),
    ("name", lambda: Variable(1.0, name=1), "name", TypeError),
    ("dtype", lambda: Variable(1.0, dtype="x"), "dtype", TypeError),
    ("complex", lambda: Variable(1j, dtype="float32", name="v"), "v", TypeError),
    ("constraint", lambda: Variable(1.0, constraint=1), "constraint", TypeError),
)
def test_variables(call, argument, error):
    refused(call, argument, error)


@pytest.mark.parametrize("method", ["assign", "assign_add", "assign_sub"])
@pytest.mark.parametrize(
    ("value", "error"),
    [("a", TypeError), (None, TypeError), (object(), TypeError), ({}, TypeError), ([[1], [1, 2]], TypeError)]
    + [(1j * np.ones((2, 3)), TypeError), (np.ones(5), ValueError), (np.ones((1, 2, 3)), ValueError)],
)
def test_assigned_values(method, value, error):
    v = Variable(np.ones((2, 3)), name="layer/v")
    refused(lambda: getattr(v, method)(value), "layer/v", error)
    assert np.all(v.numpy() == 1)


# --- the stateful face ------------------------------------------------------------------------------------------------


def of_optimizer(*table):
    return cases(*[(f"{name} {i}", f, argument, error) for i, (name, f, argument, error) in enumerate(table)])


def attribute(name, value):
    return name, lambda o, v: setattr(o, name, value), name, TypeError


@of_optimizer(
    ("apply_gradients", lambda o, v: o.apply_gradients(5), "grads_and_vars", TypeError),
    ("apply_gradients", lambda o, v: o.apply_gradients([()]), "grads_and_vars", TypeError),
    ("apply_gradients", lambda o, v: o.apply_gradients({"g": v}), "grads_and_vars", TypeError),
    ("apply", lambda o, v: o.apply("ab", [v]), "grads", TypeError),
    ("apply", lambda o, v: o.apply([1.0], [v]), "v", ValueError),
    ("apply", lambda o, v: o.apply(["a"], [v]), "v", TypeError),
    ("apply", lambda o, v: o.apply([np.array([True, False])], [v]), "v", TypeError),
    ("apply", lambda o, v: o.apply([IndexedSlices(ROWS, np.array([0.5]))], [v]), "v", TypeError),
    ("apply", lambda o, v: o.apply([IndexedSlices(None, None)], [v]), "v", TypeError),
    ("apply", lambda o, v: o.apply([IndexedSlices("a", "b")], [v]), "v", TypeError),
    ("apply", lambda o, v: o.apply([IndexedSlices(ROWS, np.array([0, 1]))], [v]), "v", ValueError),
    ("build", lambda o, v: o.build(None), "variables", TypeError),
    ("build", lambda o, v: o.build(v), "variables", TypeError),
    ("build", lambda o, v: o.build({"v": v}), "variables", TypeError),
    ("build", lambda o, v: o.build([np.ones(3)]), "jaxopt_keras.Variable", TypeError),
    ("build", lambda o, v: o.build([Variable(1, name="count")]), "count", TypeError),
    ("stateless", lambda o, v: o.stateless_apply(None, [], []), "optimizer_variables", TypeError),
    ("stateless", lambda o, v: o.stateless_apply(["a"] * 5, GRADS["w"], [v]), "grads", TypeError),
    ("stateless", lambda o, v: o.stateless_apply(["a"] * 5, [GRADS["w"]], [v]), "optimizer_variables", TypeError),
    ("stateless", lambda o, v: o.stateless_apply(o.variables, ["a"], [v]), "v", TypeError),
    ("stateless", lambda o, v: o.stateless_apply(o.variables, [np.ones(3)], [v]), "v", ValueError),
    ("stateless", lambda o, v: o.stateless_apply(o.variables, [GRADS["w"]], ["a"]), "trainable_variables", TypeError),
    ("get_slot", lambda o, v: o.get_slot(jnp.ones(3), "momentum"), "jaxopt_keras.Variable", TypeError),
    ("add_slot", lambda o, v: o.add_slot(v, 5), "slot_name", ValueError),
    ("add_weight", lambda o, v: o.add_weight(5, ()), "name", TypeError),
    ("add_weight", lambda o, v: o.add_weight("a", "b"), "shape", TypeError),
    ("add_weight", lambda o, v: o.add_weight("a", (-1,)), "shape", ValueError),
    ("add_weight", lambda o, v: o.add_weight("a", (), "number"), "dtype", TypeError),
    ("add_weight", lambda o, v: o.add_weight("a", (), None, "x"), "initializer", ValueError),
    ("add_variables", lambda o, v: o.add_optimizer_variables([v], ["a", "b"], ["zeros"]), "initializer", ValueError),
    ("add_variables", lambda o, v: o.add_optimizer_variables(v, "a"), "trainable_variables", TypeError),
    ("add_variables", lambda o, v: o.add_optimizer_variables([v], 5), "name", TypeError),
    ("exclude", lambda o, v: o.exclude_from_weight_decay(5), "var_list", TypeError),
    ("exclude", lambda o, v: o.exclude_from_weight_decay(v), "var_list", TypeError),
    ("exclude", lambda o, v: o.exclude_from_weight_decay(["v"]), "jaxopt_keras.Variable", TypeError),
    ("exclude", lambda o, v: o.exclude_from_weight_decay(var_names=5), "var_names", TypeError),
    ("exclude", lambda o, v: o.exclude_from_weight_decay(var_names=["("]), "exclude_from_weight_decay", ValueError),
    ("finalize", lambda o, v: o.finalize_variable_values(None), "var_list", TypeError),
    ("finalize", lambda o, v: o.finalize_variable_values(v), "var_list", TypeError),
    ("set_weights", lambda o, v: o.set_weights(5), "weights", TypeError),
    ("set_weights", lambda o, v: o.set_weights([1, 2]), "weights", ValueError),
    ("load", lambda o, v: o.load_own_variables(None), "store", TypeError),
    ("load", lambda o, v: o.load_own_variables({str(i): "a" for i in range(5)}), "iteration", ValueError),
    ("save", lambda o, v: o.save_own_variables(None), "store", TypeError),
    ("scale_loss", lambda o, v: o.scale_loss("a"), "loss", TypeError),
    ("minimize", lambda o, v: o.minimize(None, [v]), "loss", TypeError),
    ("minimize", lambda o, v: o.minimize(lambda: v.sum(), 5), "var_list", TypeError),
    attribute("learning_rate", "a"),
    attribute("learning_rate", dict),
    attribute("learning_rate", np.ones(2)),
    attribute("iterations", "a"),
    attribute("beta_1", jnp.ones(2)),
    ("state", lambda o, v: setattr(o, "state", 5), "state", ValueError),
    ("state", lambda o, v: setattr(o, "state", STATE), "state", ValueError),
)
def test_stateful(call, argument, error):
    v = Variable(np.ones((2, 3)), name="v")
    optimizer = jk.Adam(use_ema=True)
    optimizer.apply([np.ones((2, 3))], [v])
    before = everything(optimizer, [v])
    refused(lambda: call(optimizer, v), argument, error)
    assert everything(optimizer, [v]) == before


RATES = {
    "text": (lambda: "a", TypeError),
    "None": (lambda: None, TypeError),
    "an array": (lambda: np.ones(2), ValueError),
    "a schedule of text": (lambda step: "a", TypeError),
    "a schedule of None": (lambda step: None, TypeError),
    "a schedule of arrays": (lambda step: jnp.ones(2), ValueError),
}


@pytest.mark.parametrize(("rate", "error"), RATES.values(), ids=RATES)
def test_rates_that_are_none(rate, error):
    v = Variable(np.ones(3))
    optimizer = jk.SGD(0.5)
    optimizer.apply([np.ones(3)], [v])
    optimizer.learning_rate = rate
    before = optimizer.get_weights(), values([v])[0]
    refused(lambda: optimizer.apply([np.ones(3)], [v]), "learning_rate", error)
    assert optimizer.iterations == 1 == before[0][0] and np.all(v.numpy() == before[1])
    optimizer.learning_rate = 0.5
    optimizer.apply([np.ones(3)], [v])


@cases(
    ("loss", lambda: jk.value_and_grad(5, []), "loss", TypeError),
    ("variables", lambda: jk.value_and_grad(lambda: 1.0, Variable(1.0)), "variables", TypeError),
    ("arguments", lambda: jk.value_and_grad(lambda x: 1.0, [], {"x": "abc"}), "args", TypeError),
    ("aux", lambda: jk.value_and_grad(lambda: 1.0, [], has_aux=True), "loss", TypeError),
    ("get", lambda: jk.get(5), "identifier", TypeError),
    ("serialize", lambda: jk.serialize(5), "optimizer", TypeError),
    ("deserialize", lambda: jk.deserialize(5), "config", TypeError),
    ("custom_objects", lambda: jk.deserialize({"class_name": "X"}, 5), "custom_objects", TypeError),
    ("from_config", lambda: jk.Adam.from_config(5), "config", TypeError),
    ("from_config, a name", lambda: jk.Adam.from_config({"x": 1}), "x", TypeError),
    ("from_config, a rate", lambda: jk.Adam.from_config({"learning_rate": {"class_name": "X"}}), "config", ValueError),
    ("from_rule", lambda: jk.Optimizer.from_rule("adam"), "rule", TypeError),
)
def test_functions(call, argument, error):
    refused(call, argument, error)
