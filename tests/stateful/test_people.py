"""Classes that people write for Keras run after a change of the base class: the right values are those of eager Keras.

Each body is written once, and derived from Keras's base class and from ours.
"""

import copy
import math
import pickle

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras.interop.keras import as_keras
from jaxopt_keras.stateful.custom.errors import HookError
from tests.stateful.facade import close, refused, same, some_grads, two, values

OURS, THEIRS = jk.Optimizer, keras.optimizers.Optimizer


def derived(body, base):
    """The class of `body` with this base class, where pickle finds it."""
    name = f"{body.__name__}{'Theirs' if base is THEIRS else 'Ours'}"
    made = globals().get(name) or type(name, (body, base), {"__module__": __name__})
    return globals().setdefault(name, made)


def steps(optimizer, variables, which=range(5)):
    for i in which:
        optimizer.apply_gradients([*zip(some_grads(i), variables, strict=True)])
    return values(variables)


def expected(body, which=range(5), **arguments):
    return steps(derived(body, THEIRS)(0.1, **arguments), two("keras"), which)


# --- attributes -------------------------------------------------------------------------------------------------------


class Counts:
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.t = 0

    def update_step(self, gradient, variable, learning_rate):
        self.t += 1
        variable.assign_sub(learning_rate * gradient / self.t)


class KeepsArrays:
    def build(self, variables):
        super().build(variables)
        self.sums = [jnp.zeros(v.shape) for v in variables]

    def update_step(self, gradient, variable, learning_rate):
        i = self._get_variable_index(variable)
        self.sums[i] = self.sums[i] + gradient
        variable.assign_sub(learning_rate * self.sums[i])


class Nested:
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.notes = {"seen": [{"steps": 0}]}

    def update_step(self, gradient, variable, learning_rate):
        self.notes["seen"][0]["steps"] += 1
        variable.assign_sub(learning_rate * gradient * self.notes["seen"][0]["steps"])


class First:
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.first = True

    def update_step(self, gradient, variable, learning_rate):
        if not self.first:
            variable.assign_sub(learning_rate * gradient)
        self.first = False


FROZEN = {Counts: "t", KeepsArrays: r"sums\[0\]", Nested: r"notes\['seen'\]\[0\]\['steps'\]", First: "first"}


@pytest.mark.parametrize("body", FROZEN)
def test_an_attribute_that_hooks_change_is_refused(body):
    cls = derived(body, OURS)
    optimizer, variables = cls(0.1), two()
    text = f"`update_step` of {cls.__name__} changes the attribute `{FROZEN[body]}`.*self.iterations.*jit_compile=False"
    before = copy.deepcopy({k: v for k, v in vars(optimizer).items() if k in ("t", "notes", "first")})
    with refused(HookError, text, optimizer, *variables):
        optimizer.apply_gradients([*zip(some_grads(), variables, strict=True)])
    assert {k: v for k, v in vars(optimizer).items() if k in before} == before
    assert not any(isinstance(x, jax.core.Tracer) for x in vars(optimizer).get("sums", ()))


@pytest.mark.parametrize("way", ["argument", "attribute"])
@pytest.mark.parametrize("body", FROZEN)
def test_and_works_without_compiling(body, way):
    optimizer = derived(body, OURS)(0.1, **({"jit_compile": False} if way == "argument" else {}))
    optimizer.jit_compile = False
    close(steps(optimizer, two()), expected(body))


def test_a_cache_may_be_filled():
    class Caches(OURS):
        def update_step(self, gradient, variable, learning_rate):
            eye = self.__dict__.setdefault("eyes", {}).setdefault(variable.path, float(np.prod(variable.shape)))
            variable.assign_sub(learning_rate * gradient / eye)

    optimizer, a, b = Caches(0.5), two(), two()
    steps(optimizer, a)
    expected = [x - 0.5 * sum(np.array(some_grads(i)[k]) for i in range(5)) / x.size for k, x in enumerate(values(b))]
    close(values(a), expected, atol=1e-6)
    assert optimizer.eyes == {"kernel": 6.0, "bias": 3.0}


@pytest.mark.parametrize("name", ["learning_rate", "iterations"])
@pytest.mark.parametrize("compiled", [True, False])
def test_hooks_may_not_assign_what_is_set_for_the_step(name, compiled):
    class Assigns(OURS):
        def update_step(self, gradient, variable, learning_rate):
            getattr(self, name).assign(3)

    optimizer, variables = Assigns(0.1, jit_compile=compiled), two()
    stored = {"learning_rate": "learning_rate", "iterations": "count"}[name]
    with refused(HookError, f"A hook of Assigns assigns `{stored}`", optimizer, *variables):
        steps(optimizer, variables)


# --- variables of the class's own -------------------------------------------------------------------------------------


class OwnVariables:
    """A `keras.Variable` in an attribute, in a list and in a dict."""

    def build(self, variables):
        super().build(variables)
        self.count = keras.Variable(0.0, name="count", trainable=False)
        self.moments = [keras.Variable(keras.ops.zeros(v.shape), name="m") for v in variables]
        self.more = {"last": [keras.Variable(keras.ops.ones(v.shape), name="m") for v in variables]}

    def update_step(self, gradient, variable, learning_rate):
        i = self._get_variable_index(variable)
        m, last = self.moments[i], self.more["last"][i]
        self.count.assign_add(1.0)
        m.assign(0.9 * m.value + gradient)
        variable.assign_sub(learning_rate * m.value * last.value / keras.ops.sqrt(self.count.value))
        last.assign(0.5 * last.value + 0.5)


class OurVariables(OwnVariables):
    def build(self, variables):
        super(OwnVariables, self).build(variables)
        self.count = jk.Variable(0.0)
        self.moments = [jk.Variable(np.zeros(v.shape, "float32")) for v in variables]
        self.more = {"last": [jk.Variable(np.ones(v.shape, "float32")) for v in variables]}


@pytest.mark.parametrize("body", [OwnVariables, OurVariables])
@pytest.mark.parametrize("compiled", [True, False])
def test_variables_among_the_attributes_are_state(body, compiled):
    optimizer, variables = derived(body, OURS)(0.1, jit_compile=compiled), two()
    close(steps(optimizer, variables), expected(OwnVariables), rtol=1e-5)
    assert float(optimizer.count.value) == 10
    names = [v.name for v in optimizer.variables]
    assert names[2:] == ["count", "moments_0", "moments_1", "more_last_0", "more_last_1"]


BODIES = [OwnVariables, OurVariables]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("kind", ["copy", "deepcopy", "pickle", "weights", "own"])
def test_copies_and_saved_states_continue(body, kind):
    optimizer, variables = derived(body, OURS)(0.1), two()
    steps(optimizer, variables, range(3))
    others = [jk.Variable(v.value, name=v.name) for v in variables]
    if kind in ("weights", "own"):
        twin = type(optimizer)(0.1)
        twin.build(others)
        if kind == "weights":
            twin.set_weights(optimizer.get_weights())
        else:
            store = {}
            optimizer.save_own_variables(store)
            twin.load_own_variables(store)
    else:
        make = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda o: pickle.loads(pickle.dumps(o))}
        twin = make[kind](optimizer)
        others = variables if kind == "copy" else others
    before = [np.array(v.value) for v in optimizer.moments]
    found = steps(twin, others, [3, 4])
    close(found, expected(OwnVariables), rtol=1e-5)
    same([np.array(v.value) for v in optimizer.moments], before)  # the original has its own state


@pytest.mark.parametrize("body", BODIES)
def test_stateless_and_in_fit(body):
    optimizer, variables = derived(body, OURS)(0.1), two()
    optimizer.build(variables)
    params, state = [v.value for v in variables], [v.value for v in optimizer.variables]
    step = jax.jit(optimizer.stateless_apply)
    for i in range(5):
        params, state = step(state, some_grads(i), params)
    close(params, expected(OwnVariables), rtol=1e-5)
    assert float(optimizer.count.value) == 0
    close(steps(as_keras(derived(body, OURS)(0.1)), two("keras")), expected(OwnVariables), rtol=1e-5)


# --- values of arrays -------------------------------------------------------------------------------------------------


class Branches:
    def update_step(self, gradient, variable, learning_rate):
        if keras.ops.sum(gradient) > 0 and int(self.iterations.value) > 1:
            gradient = gradient / math.sqrt(1 + float(keras.ops.sum(gradient)))
        variable.assign_sub(learning_rate * gradient)


class Floats:
    def update_step(self, gradient, variable, learning_rate):
        variable.assign_sub(math.sqrt(learning_rate) * gradient)


class Numpies:
    def update_step(self, gradient, variable, learning_rate):
        variable.assign_sub(np.asarray(learning_rate) * np.sign(np.asarray(gradient)))


@pytest.mark.parametrize("body", [Branches, Floats, Numpies])
def test_code_that_needs_values_says_so_and_runs_uncompiled(body):
    cls = derived(body, OURS)
    optimizer, variables = cls(0.1), two()
    text = (
        f"`update_step` of {cls.__name__} .line [0-9]+ of test_people.py: .* needs the value of an array.*jit_compile"
    )
    with refused(HookError, text, optimizer, *variables):
        steps(optimizer, variables)
    optimizer.jit_compile = False
    close(steps(optimizer, variables), expected(body), atol=1e-6)


def test_an_attribute_that_arrays_lack():
    class Torch(OURS):
        def update_step(self, gradient, variable, learning_rate):
            variable.assign_sub(gradient.cpu() * learning_rate)

    optimizer, variables = Torch(0.1), two()
    with refused(HookError, "`update_step` of Torch .* uses `cpu` of an array.*jit_compile", optimizer, *variables):
        steps(optimizer, variables)


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 2},
        {"weight_decay": 0.1, "clipnorm": 0.5},
        {"use_ema": True},
        {"skip_nonfinite": True},
    ],
    ids=str,
)
def test_uncompiled_hooks_have_every_option(options):
    class Python:
        def update_step(self, gradient, variable, learning_rate):
            scale = 2.0 if int(self.iterations.value) % 2 else 1.0
            variable.assign_sub(learning_rate * gradient * scale)

    class Arrays:
        def update_step(self, gradient, variable, learning_rate):
            scale = jnp.where(self.iterations.value % 2 == 1, 2.0, 1.0)
            variable.assign_sub(learning_rate * gradient * scale)

    a = steps(derived(Python, OURS)(0.1, jit_compile=False, **options), two())
    close(a, steps(derived(Arrays, OURS)(0.1, **options), two()), atol=1e-6)


def test_a_guard_refuses_results_of_uncompiled_hooks():
    class Overflowing:
        def update_step(self, gradient, variable, learning_rate):
            factor = 1e38 if int(self.iterations.value) == 1 else 1.0
            variable.assign_sub(learning_rate * gradient * factor * factor)

    optimizer, v = derived(Overflowing, OURS)(1.0, jit_compile=False, skip_nonfinite=True), jk.Variable([3.0])
    for _ in range(3):
        optimizer.apply_gradients([(jnp.ones(1), v)])
    assert v.numpy().tolist() == [2.0] and int(optimizer.iterations) == 1 and int(optimizer.skipped) == 2


def test_uncompiled_hooks_in_a_transformation():
    optimizer, variables = derived(Branches, OURS)(0.1, jit_compile=False), two()
    optimizer.build(variables)
    params, state = [v.value for v in variables], [v.value for v in optimizer.variables]
    found, _ = optimizer.stateless_apply(state, some_grads(), params)
    close(found, expected(Branches, [0]), atol=1e-6)
    with pytest.raises(HookError, match="cannot run inside `jit`.*run_eagerly=True"):
        jax.jit(optimizer.stateless_apply)(state, some_grads(), params)


# --- wrappers ---------------------------------------------------------------------------------------------------------


class Lookahead:
    """Steps of an inner optimizer; every third step the weights go half of the way."""

    def __init__(self, inner, **kwargs):
        super().__init__(1.0, **kwargs)
        self.inner = inner

    def build(self, variables):
        super().build(variables)
        self.inner.build(variables)
        self.slow = [self.add_variable_from_reference(v, "slow") for v in variables]
        for s, v in zip(self.slow, variables, strict=True):
            s.assign(keras.ops.convert_to_tensor(v.value))

    def update_step(self, gradient, variable, learning_rate):
        self.inner.update_step(gradient, variable, self.inner.learning_rate)
        s = self.slow[self._get_variable_index(variable)]
        sync = (self.iterations.value + 1) % 3 == 0
        s.assign(keras.ops.where(sync, 0.5 * (s.value + variable.value), s.value))
        variable.assign(keras.ops.where(sync, s.value, variable.value))


class HandsOn:
    """A wrapper of `apply` inside the step."""

    def __init__(self, inner, **kwargs):
        super().__init__(1.0, **kwargs)
        self.inner = inner

    def build(self, variables):
        super().build(variables)
        self.inner.build(variables)

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        norm = keras.ops.sqrt(sum(keras.ops.sum(g * g) for g in grads))
        self.inner.apply([g / norm for g in grads], trainable_variables)


class Sam(HandsOn):
    """A step from a point that the gradient has perturbed: the weights go there and back."""

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        before = [keras.ops.convert_to_tensor(v.value) for v in trainable_variables]
        for g, v in zip(grads, trainable_variables, strict=True):
            v.assign_add(0.05 * g)
        for b, v in zip(before, trainable_variables, strict=True):
            v.assign(b)
        self.inner.apply(grads, trainable_variables)


class Bop:
    """Flips binary kernels, and trains all others with Adam."""

    def update_step(self, gradient, variable, learning_rate):
        if "kernel" in variable.name:
            variable.assign(keras.ops.where(gradient * variable.value > 0.1, -variable.value, variable.value))
        else:
            super().update_step(gradient, variable, learning_rate)


class Agc:
    """Adaptive clipping, by the norm of the variable."""

    def update_step(self, gradient, variable, learning_rate):
        limit = 0.1 * keras.ops.maximum(keras.ops.norm(variable.value), 1e-3)
        norm = keras.ops.norm(gradient)
        super().update_step(gradient * keras.ops.minimum(1.0, limit / norm), variable, learning_rate)


INNERS = {
    "Adam": lambda own: (jk if own else keras.optimizers).Adam(0.1),
    "SGD": lambda own: (jk if own else keras.optimizers).SGD(0.1, momentum=0.9, clipnorm=0.5),
}


@pytest.mark.parametrize("inner", INNERS)
@pytest.mark.parametrize("body", [Lookahead, HandsOn, Sam])
def test_wrappers_of_an_inner_optimizer(body, inner):
    ours, theirs = (derived(body, base)(INNERS[inner](base is OURS)) for base in (OURS, THEIRS))
    variables = two()
    right = steps(theirs, two("keras"), range(7)) if body is not Lookahead else None
    found = steps(ours, variables, range(7))
    if body is Lookahead:
        right = lookahead_by_hand(INNERS[inner](False))
    close(found, right, rtol=1e-4, atol=1e-5)
    counts = 0 if body is Lookahead else 7
    assert int(ours.iterations) == 7 and int(ours.inner.iterations) == counts


def lookahead_by_hand(inner):
    """Keras's wrapper calls `update_step` of an inner optimizer whose `iterations` stay 0."""
    theirs = derived(Lookahead, THEIRS)(inner)
    return steps(theirs, two("keras"), range(7))


@pytest.mark.parametrize("body", [Bop, Agc])
def test_subclasses_that_call_the_step_of_a_named_class(body):
    ours, theirs = (type(body.__name__, (body, base), {})(0.1) for base in (jk.Adam, keras.optimizers.Adam))
    close(steps(ours, two()), steps(theirs, two("keras")), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("face", ["stateless", "as_keras", "deepcopy", "pickle", "uncompiled"])
@pytest.mark.parametrize("body", [Lookahead, HandsOn])
def test_wrappers_in_every_face(body, face):
    cls = derived(body, OURS)
    right = steps(cls(jk.Adam(0.1)), two())
    optimizer, variables = cls(jk.Adam(0.1), jit_compile=face != "uncompiled"), two()
    if face == "stateless":
        optimizer.build(variables)
        params, state = [v.value for v in variables], [v.value for v in optimizer.variables]
        step = jax.jit(optimizer.stateless_apply)
        for i in range(5):
            params, state = step(state, some_grads(i), params)
        return close(params, right, atol=1e-6)
    if face == "as_keras":
        return close(steps(as_keras(optimizer), two("keras")), right, atol=1e-6)
    steps(optimizer, variables, range(2))
    if face != "uncompiled":
        optimizer = copy.deepcopy(optimizer) if face == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
    close(steps(optimizer, variables, range(2, 5)), right, atol=1e-6)


# --- laws for classes that people write -------------------------------------------------------------------------------


class HeavyBall:
    def build(self, variables):
        super().build(variables)
        self.m = [self.add_variable_from_reference(reference_variable=v, name="m") for v in variables]

    def update_step(self, gradient, variable, learning_rate):
        m = self.m[self._get_variable_index(variable)]
        m.assign(0.9 * m.value + gradient)
        variable.assign_sub(learning_rate * m.value)


def test_two_variables_of_one_shape_and_one_name():
    def pair(make):
        return [make(np.ones(3, "float32")), make(2 * np.ones(3, "float32"))]

    grads = [[jnp.asarray([1.0, -2.0, 3.0]) * (i + 1), jnp.asarray([0.5, 0.25, 4.0])] for i in range(4)]
    found = []
    for base, make in ((OURS, lambda x: jk.Variable(x, name="w")), (THEIRS, lambda x: keras.Variable(x, name="w"))):
        optimizer, variables = derived(HeavyBall, base)(0.1, weight_decay=0.1), pair(make)
        for g in grads:
            optimizer.apply_gradients([*zip(g, variables, strict=True)])
        found.append(values(variables))
    close(*found)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_gradients_that_are_none():
    found = []
    for base, kind in ((OURS, "ours"), (THEIRS, "keras")):
        optimizer, variables = derived(HeavyBall, base)(0.1), two(kind)
        optimizer.build(variables)
        for i in range(4):
            kernel, bias = some_grads(i)
            optimizer.apply_gradients([(kernel if i % 2 else None, variables[0]), (bias, variables[1])])
        found.append(values(variables))
    close(*found)


@pytest.mark.parametrize(
    "options", [{"clipnorm": 0.5, "use_ema": True, "ema_overwrite_frequency": 2}, {"clipvalue": 0.1}]
)
@pytest.mark.usefixtures("jax_defaults")  # Keras's average promotes
def test_options_are_keras_s(options):
    ours, theirs = (derived(HeavyBall, base)(0.1, **options) for base in (OURS, THEIRS))
    close(steps(ours, two()), steps(theirs, two("keras")), atol=1e-6)


@pytest.mark.usefixtures("jax_defaults")
def test_a_fit_is_keras_s():
    found = []
    for optimizer in (as_keras(derived(HeavyBall, OURS)(0.05)), derived(HeavyBall, THEIRS)(0.05)):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(1)])
        model.compile(optimizer, loss="mse")
        x = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
        model.fit(x, x.sum(1), batch_size=8, epochs=3, shuffle=False, verbose=0)
        found.append(model.get_weights())
    close(*found, rtol=1e-5)
