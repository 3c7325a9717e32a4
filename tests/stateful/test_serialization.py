"""Optimizers as configs, and as copies that carry their state."""

import copy
import inspect
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest

import jaxopt_keras as jk
from jaxopt_keras import rules, schedules
from jaxopt_keras.language.rule import Rate, Rule, Signed
from jaxopt_keras.optimizers import FUNCTIONS, parameters
from tests.laws.cases import RULES, switched
from tests.stateful.facade import (
    CLASSES,
    KINDS,
    close,
    every_class,
    every_kind,
    in_keras,
    same,
    some_grads,
    two,
    unchanged,
    values,
)

BASE = [
    "name", "learning_rate", "weight_decay", "clipnorm", "global_clipnorm", "clipvalue", "use_ema", "ema_momentum",
    "ema_overwrite_frequency", "loss_scale_factor", "gradient_accumulation_steps",
]  # fmt: skip
RULE = {rule.__name__: rule for rule in RULES}


class Leaning(Rule):
    learning_rate: Rate = 0.1
    lean: float = 0.5

    class State(NamedTuple):
        last: Signed

    def init(self, p):
        return self.State(jnp.zeros_like(p))

    def update(self, g, p, s, at):
        return -at.lr * (g + self.lean * s.last), self.State(g)


class Momentum(jk.Optimizer):
    """Keras 3's hooks: it keeps views in a list."""

    def __init__(self, learning_rate=0.1, mu=0.9, **kwargs):
        super().__init__(learning_rate, **kwargs)
        self.mu = mu

    def build(self, variables):
        super().build(variables)
        self.momenta = self.add_optimizer_variables(variables, "momentum")
        self.count = self.add_variable((), name="count")

    def update_step(self, gradient, variable, learning_rate):
        m = self.momenta[self._get_variable_index(variable)]
        m.assign(self.mu * m + gradient)
        self.count.assign_add(1)
        variable.assign_sub(learning_rate * m)

    def get_config(self):
        return super().get_config() | {"mu": self.mu}


class Tf2Momentum(jk.Optimizer):
    """TF 2's."""

    def __init__(self, learning_rate=0.1, mu=0.9, name="Tf2Momentum", **kwargs):
        super().__init__(name, **kwargs)
        self._set_hyper("learning_rate", kwargs.get("lr", learning_rate))
        self._set_hyper("mu", mu)

    def _create_slots(self, var_list):
        for var in var_list:
            self.add_slot(var, "momentum")

    def _resource_apply_dense(self, grad, var):
        m = self.get_slot(var, "momentum")
        m.assign(self._get_hyper("mu", var.dtype.base_dtype) * m + grad)
        var.assign_sub(self._decayed_lr(var.dtype.base_dtype) * m)

    def get_config(self):
        rate, mu = self._serialize_hyperparameter("learning_rate"), self._serialize_hyperparameter("mu")
        return super().get_config() | {"learning_rate": rate, "mu": mu}


# --- signatures -------------------------------------------------------------------------------------------------------


@in_keras
def test_signatures_are_keras_own(name):
    ours = inspect.signature(CLASSES[name]).parameters
    theirs = inspect.signature(getattr(keras.optimizers, name)).parameters
    shared = [(p.name, p.default) for p in theirs.values() if p.kind is not p.VAR_KEYWORD]
    assert [(p.name, p.default) for p in ours.values() if p.kind is not p.KEYWORD_ONLY] == shared
    assert all(p.kind is p.KEYWORD_ONLY for p in list(ours.values())[len(shared) :])


@pytest.mark.parametrize(("cls", "function"), [*zip(CLASSES.values(), FUNCTIONS.values(), strict=True)], ids=FUNCTIONS)
def test_functions_have_the_parameters_of_their_class(cls, function):
    assert inspect.signature(function) == inspect.signature(cls)
    assert inspect.signature(cls).parameters.keys() == {p.name for p in parameters(RULE[cls.__name__])}
    for p in inspect.signature(cls).parameters:
        assert f"{p}:" in cls.__doc__ and f"{p}:" in function.__doc__


# --- configs ----------------------------------------------------------------------------------------------------------


@in_keras
def test_configs_are_keras_own(name):
    ours, theirs = CLASSES[name]().get_config(), getattr(keras.optimizers, name)().get_config()
    assert list(ours)[: len(BASE)] == BASE == list(theirs)[: len(BASE)]
    assert ours.keys() == theirs.keys()
    for key in ours.keys() - {"name", "learning_rate"}:
        assert ours[key] == theirs[key], key
    close(ours["learning_rate"], theirs["learning_rate"])
    if name != "Muon":  # whose config has another order than its constructor
        assert list(ours) == list(theirs)


@every_class
def test_configs_go_through_json_and_back(name):
    arguments = {"learning_rate": schedules.CosineDecay(0.1, 10), "clipnorm": 0.5, "use_ema": True, "sparse": "dense"}
    arguments |= switched(RULE[name]) | {"exclude_from_weight_decay": ["bias"], "name": "mine", "axis_name": "data"}
    optimizer = CLASSES[name](**arguments)
    config = json.loads(json.dumps(optimizer.get_config()))
    before = copy.deepcopy(config)
    again = CLASSES[name].from_config(config)
    assert config == before
    assert again.get_config() == optimizer.get_config()
    assert (again._rule, again._options, again._rate_source) == (
        optimizer._rule,
        optimizer._options,
        optimizer._rate_source,
    )
    assert type(again) is CLASSES[name]

    whole = json.loads(json.dumps(jk.serialize(optimizer)))
    assert list(whole) == ["module", "class_name", "config", "registered_name"]
    before = copy.deepcopy(whole)
    assert jk.deserialize(whole).get_config() == jk.get(whole).get_config() == optimizer.get_config()
    assert whole == before


def test_the_rate_in_a_config():
    optimizer = jk.Adam(0.1)
    assert optimizer.get_config()["learning_rate"] == 0.1  # as it was given, not its float32
    optimizer.learning_rate = 0.3
    assert optimizer.get_config()["learning_rate"] == 0.3
    optimizer.learning_rate.assign(0.25)
    assert optimizer.get_config()["learning_rate"] == 0.25
    assert Momentum(0.1).get_config()["learning_rate"] == 0.1
    assert type(jk.Adam(np.float32(0.5)).get_config()["learning_rate"]) is float
    assert jk.SGD.from_config({"lr": 0.5}).learning_rate == 0.5  # TF 2's
    assert jk.SGD.from_config({"learning_rate": None}).learning_rate == np.float32(0.01)


def test_what_a_config_cannot_hold_is_left_out_with_a_warning():
    for name, optimizer in {
        "learning_rate": jk.SGD(lambda: 0.1),
        "learning_rate`": jk.SGD(lambda step: 0.1),
        "constraints": jk.SGD(constraints={"w": jnp.abs}),
        "exclude_from_weight_decay": jk.SGD(exclude_from_weight_decay=lambda path, p: True),
    }.items():
        with pytest.warns(UserWarning, match=f"`{name}") as caught:
            json.dumps(optimizer.get_config())
        assert len(caught) == 1


@in_keras
def test_kerass_own_serialized_optimizers_load(name):
    theirs = getattr(keras.optimizers, name)(0.25, clipnorm=0.5)
    config = json.loads(json.dumps(keras.optimizers.serialize(theirs)))
    ours = jk.deserialize(config)
    assert type(ours) is CLASSES[name] and ours.clipnorm == 0.5 and float(ours.learning_rate) == 0.25
    assert ours.get_config() == theirs.get_config() | {"name": ours.name}


def test_kerass_own_schedules_load():
    theirs = keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.5))
    ours = jk.deserialize(keras.optimizers.serialize(theirs))
    assert ours._rate_source == schedules.ExponentialDecay(0.5, 10, 0.5)


class Doubling(schedules.LearningRateSchedule):
    def __init__(self, start):
        self.start = start

    def __call__(self, step):
        return self.start * 2.0 ** jnp.asarray(step, float)

    def get_config(self):
        return {"start": self.start}


@pytest.mark.parametrize("cls", [Momentum, Tf2Momentum])
def test_custom_objects(cls):
    optimizer = cls(Doubling(0.5), mu=0.25)
    objects = {"Doubling": Doubling, cls.__name__: cls}
    config = json.loads(json.dumps(jk.serialize(optimizer)))
    again = jk.deserialize(config, custom_objects=objects)
    assert type(again) is cls and float(again.mu) == 0.25 and float(again.learning_rate) == 0.5
    assert again.get_config() == optimizer.get_config()
    with pytest.raises(ValueError, match=f"There is no optimizer `{cls.__name__}`.*custom_objects="):
        jk.deserialize(config)
    with pytest.raises(ValueError, match="`config`.*custom_objects=.*Doubling"):
        jk.deserialize(config, custom_objects={cls.__name__: cls})


def test_optimizers_of_rules():
    ours = jk.Optimizer.from_rule(rules.Adam(beta_1=0.5), clipnorm=1.0)
    assert jk.serialize(ours)["class_name"] == "Adam"
    assert jk.deserialize(jk.serialize(ours)).get_config() == ours.get_config()
    leaning = jk.Optimizer.from_rule(Leaning(0.5, lean=0.25), clipnorm=1.0, name="mine")
    config = json.loads(json.dumps(jk.serialize(leaning)))
    again = jk.deserialize(config, {"Leaning": Leaning})
    assert (again._rule, again._options, again.name) == (leaning._rule, leaning._options, "mine")
    with pytest.raises(ValueError, match="There is no optimizer `Leaning` of module"):
        jk.deserialize(config)


# --- get --------------------------------------------------------------------------------------------------------------


@every_class
def test_get(name):
    function = dict(zip(CLASSES, FUNCTIONS, strict=True))[name]
    for spelling in (name, name.lower(), name.upper(), function, f"jaxopt_keras>{name}"):
        assert type(jk.get(spelling)) is CLASSES[name]
    optimizer = CLASSES[name](0.5)
    assert jk.get(optimizer) is optimizer
    assert type(jk.get({"class_name": name.lower(), "config": {}})) is CLASSES[name]
    assert type(jk.get({"class_name": name})) is CLASSES[name]
    assert jk.get(RULE[name](0.5))._rule == optimizer._rule


def test_get_nothing():
    assert jk.get(None) is None


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: jk.get("adamm"), ValueError, "There is no optimizer `adamm`. Known: .*'Adam', .*custom_objects"),
        (lambda: jk.get(""), ValueError, "There is no optimizer ``"),
        (lambda: jk.get("other>Adam"), ValueError, "There is no optimizer `other>Adam`"),
        (lambda: jk.get(1), TypeError, r"`identifier` must be a name.* Received: identifier=1 \(int\)"),
        (lambda: jk.get(jk.Adam), TypeError, "`identifier`"),
        (lambda: jk.get({}), TypeError, '`config` must be a dict with a "class_name". Received: config={}'),
        (lambda: jk.deserialize("adam"), TypeError, "`config`"),
        (lambda: jk.deserialize({"class_name": 1}), TypeError, "`config`"),
        (lambda: jk.deserialize({"class_name": "Adam", "module": "mine"}), ValueError, "`Adam` of module 'mine'"),
        (lambda: jk.deserialize({"class_name": "Adam", "config": [1]}), TypeError, r"`config` must be a dict. .*\[1\]"),
        (
            lambda: jk.deserialize({"class_name": "Adam", "config": {"beta": 1}}),
            TypeError,
            "no argument `beta`. Received: beta=1. Did you mean `beta_",
        ),
        (lambda: jk.serialize("adam"), TypeError, "`optimizer` must be an `Optimizer`. Received: optimizer='adam'"),
        (lambda: jk.serialize(jk.Optimizer.from_optax(optax.sgd(1))), TypeError, "code that a config cannot hold"),
        (lambda: jk.SGD.from_config(None), TypeError, "`config` must be a dict. Received: config=None"),
    ],
)
def test_what_is_refused(call, error, text):
    with pytest.raises(error, match=text):
        call()


# --- copies -----------------------------------------------------------------------------------------------------------

WAYS = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}
every_way = pytest.mark.parametrize("way", WAYS)

MAKERS = {
    "Adam": lambda: jk.Adam(0.1, amsgrad=True, weight_decay=0.1, clipnorm=1.0),
    "Nadam": lambda: jk.Nadam(0.1, use_ema=True, gradient_accumulation_steps=2),
    "schedule": lambda: jk.SGD(schedules.CosineDecay(0.1, 10), momentum=0.9),
    "from_rule": lambda: jk.Optimizer.from_rule(Leaning(0.1), use_ema=True),
    "Keras 3": lambda: Momentum(0.1, clipnorm=1.0, use_ema=True),
    "TF 2": lambda: Tf2Momentum(0.1, weight_decay=0.1),
}
every_maker = pytest.mark.parametrize("maker", MAKERS)


def go_on(optimizer, variables, steps=(3, 4, 5)):
    for i in steps:
        optimizer.apply(some_grads(i), variables)
    return values(variables), optimizer.get_weights()


@every_way
@every_maker
@pytest.mark.parametrize("steps", [0, 3])
def test_a_copy_goes_on_as_the_original_would(maker, way, steps):
    optimizer, variables = MAKERS[maker](), two()
    go_on(optimizer, variables, range(steps))
    start, others = values(variables), two()
    with unchanged(optimizer, *variables):
        twin = WAYS[way](optimizer)
        assert type(twin) is type(optimizer) and repr(twin) == repr(optimizer)
        if way == "copy":  # for the same variables
            result = go_on(twin, variables)
            for v, x in zip(variables, start, strict=True):
                v.assign(x)
        else:
            for v, x in zip(others, start, strict=True):
                v.assign(x)
            result = go_on(twin, others)
    assert twin.iterations != optimizer.iterations
    same(result, go_on(optimizer, variables))
    assert [v.name for v in twin.variables] == [v.name for v in optimizer.variables]


@every_maker
def test_optimizer_and_variables_copied_together(maker):
    optimizer, variables = MAKERS[maker](), two()
    go_on(optimizer, variables, range(3))
    for twin, others in (copy.deepcopy((optimizer, variables)), pickle.loads(pickle.dumps((optimizer, variables)))):
        assert [v.path for v in others] == ["kernel", "bias"] and others[0] is not variables[0]
        result = go_on(twin, others)
        assert not np.array_equal(values(others)[0], values(variables)[0])
        other, others = copy.deepcopy((optimizer, variables))
        same(go_on(other, others), result)


def test_a_copy_has_settings_of_its_own():
    for optimizer in (jk.Adam(0.5), Momentum(0.5), Tf2Momentum(0.5)):
        variables = two()
        optimizer.apply(some_grads(), variables)
        twin = copy.copy(optimizer)
        with unchanged(optimizer, *variables):
            twin.learning_rate = 0.25
            twin.clipnorm = 1.0
            twin.iterations = 7
            for name in ("beta_1", "mu"):
                if hasattr(twin, name):
                    setattr(twin, name, 0.125)
            assert float(getattr(optimizer, "beta_1", getattr(optimizer, "mu", 0))) == pytest.approx(0.9)
            twin.exclude_from_weight_decay(variables)
        assert float(optimizer.learning_rate) == 0.5 and float(twin.learning_rate) == 0.25


@every_kind
@every_way
def test_copies_know_every_kind(kind, way):
    optimizer, variables = jk.SGD(0.1, momentum=0.9), two(kind)
    optimizer.apply(some_grads(), variables)
    twin = WAYS[way](optimizer)
    fresh = variables if way == "copy" else two(kind)
    twin.build(fresh)
    same([twin.get_slot(v, "momentum").numpy() for v in fresh], optimizer.get_weights()[1:])


def momenta(optimizer, variables):
    return [float(optimizer.get_slot(v, "momentum").numpy()[0]) for v in variables]


def named(*names, shape=(2,)):
    return [jk.Variable(np.zeros(shape), name=name) for name in names]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("abc", "abc", [1, 2, 3]),
        ("abc", "cab", [3, 1, 2]),  # by path, whatever the order
        ("abc", "xyz", [1, 2, 3]),  # by order, where the names are others
        ("abc", "bcd", [1, 2, 3]),  # a model made anew: its numbers have moved on
        ("abc", "b", [2]),  # some come first
        ("abc", "bx", [2, 0]),  # a new one joins
        ("abc", "abcd", [1, 2, 3, 0]),
        ("aaa", "aaa", [1, 2, 3]),  # nnx and Refs have no names
        ("aaa", "aa", [1, 2]),
    ],
)
def test_slots_meet_their_variables(before, after, expected):
    variables = named(*before)
    optimizer = jk.SGD(1.0, momentum=0.5)
    optimizer.apply([np.full(2, -i - 1.0) for i in range(len(variables))], variables)
    twin = pickle.loads(pickle.dumps(optimizer))
    others = named(*after)
    twin.build(others)
    assert momenta(twin, others) == expected
    if after == "b":
        more = named("c", "a")
        twin.build(more)
        assert momenta(twin, [*more, *others]) == [3, 1, 2]


def test_slots_do_not_meet_variables_of_another_shape():
    optimizer = jk.SGD(1.0, momentum=0.5)
    optimizer.apply([np.ones(2)], named("a"))
    twin = pickle.loads(pickle.dumps(optimizer))
    (other,) = others = named("a", shape=(3,))
    twin.build(others)
    assert twin.get_slot(other, "momentum").numpy().tolist() == [0, 0, 0]
    assert [v.name for v in twin.variables][2:] == ["a_momentum", "a_1_momentum"]


@every_way
def test_settings_changed_before_the_variables_are_met(way):
    optimizer, variables = jk.Adam(0.1), two()
    go_on(optimizer, variables, range(3))
    twin, others = WAYS[way](optimizer), two()
    if way == "copy":
        others = variables
    for v, x in zip(others, values(variables), strict=True):
        v.assign(x)
    for o in (twin, optimizer):
        o.clipnorm = 0.5
        o.use_ema = True
        o.amsgrad = True
        assert [v.name for v in o.variables][2:]
    result = go_on(twin, others, [3])
    if way != "copy":
        same(go_on(optimizer, variables, [3]), result)
    assert twin.get_slot_names() == ["momentum", "velocity", "velocity_hat", "average"]


@every_way
def test_exclusions_are_copied(way):
    a, b, c = named("dense/kernel", "dense/bias", "dense/bias_2")
    optimizer = jk.SGD(0.5, weight_decay=0.5)
    optimizer.exclude_from_weight_decay([b])
    copies = [WAYS[way](optimizer)]  # before the variables are known, and after
    optimizer.build([a, b, c])
    copies.append(WAYS[way](optimizer))
    copies.append(WAYS[way](copies[1]))
    for twin in copies:
        variables = [a, b, c] if way == "copy" else named("dense/kernel", "dense/bias", "dense/bias_2")
        for v in variables:
            v.assign(np.ones(2))
        twin.apply([np.zeros(2)] * 3, variables)
        assert [bool(np.all(v.numpy() == 1)) for v in variables] == [False, True, False]


def test_stateless_before_the_variables_are_met():
    optimizer, variables = jk.Adam(0.1), two()
    optimizer.build(variables)
    twin = pickle.loads(pickle.dumps(optimizer))
    own, params = [v.value for v in twin.variables], [v.value for v in variables]
    result = twin.stateless_apply(own, some_grads(), params)
    optimizer.apply(some_grads(), variables)
    close([np.array(x) for x in result[0]], values(variables))
    custom = Momentum()
    custom.build(variables)
    with pytest.raises(ValueError, match=r"`stateless_apply` needs the variables \['kernel', 'bias'\]. Call `build"):
        pickle.loads(pickle.dumps(custom)).stateless_apply(custom.variables, some_grads(), params)
    with pytest.raises(ValueError, match="needs a built optimizer"):
        twin.apply(some_grads())


@pytest.mark.usefixtures("jax_defaults")  # optax's arithmetic promotes
def test_optax_transformations_are_copied():
    with_schedule = optax.adam(optax.constant_schedule(0.1))
    optimizer, variables = jk.Optimizer.from_optax(with_schedule), two()
    go_on(optimizer, variables, range(2))
    start = values(variables)
    for way in (copy.copy, copy.deepcopy):
        twin, others = way(optimizer), variables if way is copy.copy else two()
        for v, x in zip(others, start, strict=True):
            v.assign(x)
        result = go_on(twin, others)
        for v, x in zip(variables, start, strict=True):
            v.assign(x)
        same(go_on(copy.copy(optimizer), variables), result)


SCRIPT = """
import pickle, sys
import numpy as np
import jaxopt_keras as jk
from tests.stateful.facade import some_grads, two, values
import tests.stateful.test_serialization as module

with open(sys.argv[1], "rb") as file:
    saved = pickle.load(file)
results = {}
for name, (optimizer, start) in saved.items():
    variables = two()
    for v, x in zip(variables, start, strict=True):
        v.assign(x)
    results[name] = module.go_on(optimizer, variables)
with open(sys.argv[2], "wb") as file:
    pickle.dump(results, file)
"""


def test_another_process_goes_on(tmp_path):
    saved, optimizers = {}, {}
    for name, maker in MAKERS.items():
        optimizer, variables = optimizers[name] = maker(), two()
        go_on(optimizer, variables, range(3))
        saved[name] = optimizer, values(variables)
    (tmp_path / "in").write_bytes(pickle.dumps(saved))
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", "import conftest\n" + SCRIPT, str(tmp_path / "in"), str(tmp_path / "out")]
    subprocess.run(command, cwd=root, check=True, timeout=300)
    results = pickle.loads((tmp_path / "out").read_bytes())
    for name, (optimizer, variables) in optimizers.items():
        same(results[name], go_on(optimizer, variables))


def test_kinds_are_all_there():
    assert set(KINDS) == {"ours", "keras", "nnx", "ref"}


def test_a_pickle_gives_no_variable_the_slots_of_another_shape():
    old, new = jk.Variable(np.zeros(3), name="w"), jk.Variable(np.zeros(2), name="w")
    optimizer = jk.Adam(0.5)
    optimizer.apply_gradients([(np.ones(3), old)])
    again = pickle.loads(pickle.dumps(optimizer))
    again.apply_gradients([(np.ones(2), new)])
    assert again.get_slot(new, "momentum").shape == (2,)
    assert new.numpy().tolist() != [0, 0]


EXCLUSIONS = {
    "names": lambda v: {"var_names": ["bias$"]},
    "variables": lambda v: {"var_list": [v[1]]},
    "both": lambda v: {"var_list": [v[1]], "var_names": ["nothing|bias"]},
}


@pytest.mark.parametrize("when", ["before", "after", "loaded twice"])
@pytest.mark.parametrize("how", EXCLUSIONS)
@pytest.mark.parametrize(
    "make", [lambda: jk.SGD(0.5, weight_decay=0.5), lambda: jk.Optimizer.from_rule(jk.rules.SGD(0.5), weight_decay=0.5)]
)
def test_what_was_excluded_from_decay_is_in_the_config(make, how, when):
    """Otherwise a training that is resumed decays more than before."""
    optimizer, variables = make(), two()
    if when != "before":
        optimizer.build(variables)
    optimizer.exclude_from_weight_decay(**EXCLUSIONS[how](variables))
    again = jk.deserialize(json.loads(json.dumps(jk.serialize(optimizer))))
    if when == "loaded twice":
        again = jk.deserialize(json.loads(json.dumps(jk.serialize(again))))
    others = two()
    before = [v.numpy() for v in others]
    again.apply([np.zeros((2, 3), np.float32), np.zeros(3, np.float32)], others)
    np.testing.assert_array_equal(others[0].numpy(), before[0] * np.float32(0.75))
    np.testing.assert_array_equal(others[1].numpy(), before[1])


def test_what_an_inner_optimizer_excluded_is_in_the_config():
    variables = two()
    inner = jk.SGD(0.5, weight_decay=0.5)
    inner.exclude_from_weight_decay(var_list=[variables[1]])
    for optimizer in (jk.LossScaleOptimizer(inner, 1.0), jk.MultiOptimizer(jk.OptimizerMap(inner))):
        again = jk.deserialize(json.loads(json.dumps(jk.serialize(optimizer))))
        others = two()
        again.apply([np.zeros((2, 3), np.float32), np.zeros(3, np.float32)], others)
        assert (
            others[1].numpy().tolist() == [1, 1, 1]
            and others[0].numpy()[0, 1] == np.float32(0.75) * variables[0].numpy()[0, 1]
        )
