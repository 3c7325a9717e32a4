"""Names that users of torch, optax and Keras look for: they are there, or the error says which to write instead."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest

import jaxopt_keras as jk
from jaxopt_keras.interop.keras import SGD, Adam, HistoryCallback

PARAMS = {"w": jnp.ones(3), "b": jnp.ones(2)}


@pytest.mark.parametrize("name", ["state_dict", "load_state_dict", "param_groups", "zero_grad", "apply_gradients"])
def test_a_kernel_says_what_to_write(name):
    with pytest.raises(AttributeError, match=rf"'Kernel' object has no attribute '{name}'\. .*(jaxopt_keras|step)"):
        getattr(jk.adam(), name)
    assert not hasattr(jk.adam(), name)


@pytest.mark.parametrize(
    ("name", "text"), [("mu", "momentum"), ("nu", "velocity"), ("step", "count"), ("state_dict", "checkpoint.save")]
)
def test_a_state_says_what_to_write(name, text):
    state = jk.adam().init(PARAMS)
    with pytest.raises(AttributeError, match=rf"'State' object has no attribute '{name}'\. .*{text}"):
        getattr(state, name)
    for same in (copy.deepcopy(state), pickle.loads(pickle.dumps(state)), jax.tree.map(jnp.copy, state)):
        assert jax.tree.structure(same) == jax.tree.structure(state)


def test_own_errors_of_properties_stay():
    with pytest.raises(AttributeError, match="A kernel with groups has no rule"):
        jk.partition({"b": jk.sgd(0.1)}, default=jk.adam()).rule  # noqa: B018  # it raises


# --- the numbers of the step just done --------------------------------------------------------------------------------

RATES = {
    "number": lambda: 0.25,
    "schedule": lambda: jk.schedules.PolynomialDecay(1.0, 4, 0.0),
    "function": lambda: lambda count: 1.0 / (1.0 + jnp.asarray(count, jnp.float32)),
}


@pytest.mark.parametrize("inject", [False, True, "learning_rate"])
@pytest.mark.parametrize("kind", RATES)
def test_the_rate_of_the_step_just_done(kind, inject):
    """The amount that SGD adds is the rate: so the step itself says which rate it had."""
    kernel = jk.sgd(RATES[kind](), inject_hyperparams=inject)
    params, state = jnp.zeros(1), kernel.init(jnp.zeros(1))
    first = float(kernel.numbers(state)["learning_rate"])
    for i in range(3):
        updates, state = kernel.update(jnp.ones(1), state, params)
        rate = kernel.numbers(state)["learning_rate"]
        assert rate.shape == () and float(rate) == pytest.approx(-float(updates[0]))
        assert float(jax.jit(kernel.numbers)(state)["learning_rate"]) == pytest.approx(float(rate))
        assert i or first == pytest.approx(float(rate))


def test_numbers_of_groups():
    kernel = jk.partition({"b": jk.sgd(lambda count: 0.5)}, default=jk.adam(0.25, beta_1=0.75))
    state = kernel.init(PARAMS)
    _, state = kernel.update(PARAMS, state, PARAMS)
    numbers = kernel.numbers(state)
    assert float(numbers["b"]["learning_rate"]) == 0.5
    assert float(numbers["default"]["learning_rate"]) == 0.25 and float(numbers["default"]["beta_1"]) == 0.75
    with pytest.raises(TypeError, match="`state` must be what `init`"):
        kernel.numbers(PARAMS)


def test_a_schedule_cannot_be_replaced_by_a_number():
    kernel = jk.adam(jk.schedules.CosineDecay(1e-2, 10))
    with pytest.raises(ValueError, match=r"`learning_rate` is a schedule.*Make the kernel anew with a number"):
        kernel.replace(learning_rate=1e-3)
    with pytest.raises(ValueError, match="`beta_3` is not a run-time hyperparameter"):
        kernel.replace(beta_3=1e-3)
    other, (params, state) = jk.adam(1e-3), kernel.step(PARAMS, kernel.init(PARAMS), PARAMS, donate=False)
    assert int(other.step(params, state, PARAMS)[1].count) == 2  # as the error says: from the same state


# --- describe ---------------------------------------------------------------------------------------------------------


def test_stateful_optimizers_describe():
    variables = [jk.Variable(jnp.zeros((64, 128)), name="a/kernel"), jk.Variable(jnp.zeros(3), name="a/bias")]
    optimizer = jk.AdamW(0.5, weight_decay=0.25, exclude_from_weight_decay=["bias$"], state_dtype="int8")
    with pytest.raises(ValueError, match="`describe` needs variables"):
        optimizer.describe()
    plan = optimizer.describe(variables)
    assert not optimizer.built and len(optimizer.variables) == 2  # the count and the rate
    kinds = {path: group.kind for group in plan.groups for path in group.paths}
    assert kinds["a/kernel"].decay == "0.25" and kinds["a/bias"].decay == "excluded"
    assert kinds["a/kernel"].rate == "0.5" and "int8" in str(kinds["a/kernel"].slots)
    pure = jk.adamw(0.5, weight_decay=0.25, exclude_from_weight_decay=["bias$"], state_dtype="int8")
    assert str(plan) == str(pure.describe({v.path: v.value for v in variables}))
    optimizer.build(variables)
    assert str(optimizer.describe()) == str(plan)
    assert str(Adam(0.5).wrapped.describe(variables)) == str(jk.Adam(0.5).describe(variables))


def test_wrappers_describe():
    variables = [jk.Variable(jnp.zeros((4, 2)), name="a/kernel"), jk.Variable(jnp.zeros(2), name="a/bias")]
    groups = jk.MultiOptimizer(jk.OptimizerMap(jk.Adam(0.5), {"bias$": jk.SGD(0.25)}))
    for optimizer in (groups, jk.LossScaleOptimizer(groups)):
        kinds = {p: (g.kind.rule, g.kind.rate) for g in optimizer.describe(variables).groups for p in g.paths}
        assert kinds == {"a/kernel": ("default: Adam", "0.5"), "a/bias": ("bias$: SGD", "0.25")}


def test_a_variable_that_is_not_trained_is_described_as_such():
    w, b = jk.Variable(jnp.zeros(2), name="w"), jk.Variable(jnp.zeros(2), name="b", trainable=False)
    for variables, rules in (([w, b], {"w": "SGD", "b": "trainable=False: SGD"}), ([b], {"b": "trainable=False: SGD"})):
        plan = jk.SGD(0.5).describe(variables)
        assert {path: group.kind.rule for group in plan.groups for path in group.paths} == rules


def test_patterns_that_match_nothing_are_described():
    v = jk.Variable(jnp.zeros(2), name="w")
    groups = jk.MultiOptimizer(jk.OptimizerMap(jk.Adam(), {"bias$": jk.SGD()}))
    for optimizer in (jk.AdamW(exclude_from_weight_decay=["bias$"]), groups):
        assert any("'bias$' matches no parameter" in note for note in optimizer.describe([v]).notes)


def test_a_frozen_kernel_is_no_optimizer():
    with pytest.raises(TypeError, match="must have an `Optimizer`.* To freeze variables set their `trainable=False`"):
        jk.OptimizerMap(jk.Adam(), {"hidden": jk.frozen()})


class WithSlots(jk.Optimizer):
    def build(self, variables):
        if not self.built:
            super().build(variables)
            self.momentum = self.add_optimizer_variables(variables, "momentum")

    def update_step(self, gradient, variable, learning_rate):
        m = self.momentum[self._get_variable_index(variable)]
        self.assign(m, 0.5 * m + gradient)
        self.assign_sub(variable, learning_rate * m)


class OfAdam(jk.Adam):
    def update_step(self, gradient, variable, learning_rate):
        super().update_step(2 * gradient, variable, learning_rate)


@pytest.mark.parametrize(("make", "slots"), [(WithSlots, ("momentum",)), (OfAdam, ("momentum", "velocity"))])
def test_classes_with_hooks_describe(make, slots):
    v, w = (jk.Variable(jnp.zeros(3), name=name) for name in "vw")
    optimizer = make(0.5, clipnorm=1.0)
    with pytest.raises(ValueError, match=r"Received: \['v', 'w'\]. Call `build\(variables\)` before `describe`"):
        optimizer.describe([v, w])
    optimizer.build([v, w])
    for _ in range(2):
        (group,) = optimizer.describe().groups
        assert group.kind.rule == make.__name__ and group.kind.rate == "0.5" and sorted(group.paths) == ["v", "w"]
        assert group.kind.slots == tuple(f"{name} float32" for name in slots) and group.bytes == 24 * len(slots)
        assert optimizer.describe([w]).groups[0].paths == ["w"]
        optimizer.apply_gradients([(jnp.ones(3), v), (jnp.ones(3), w)])


# --- numbers of a checkpoint ------------------------------------------------------------------------------------------


def test_a_rate_that_was_changed_by_hand_is_not_lost_in_silence(tmp_path, recwarn):
    path, v = tmp_path / "run.safetensors", jk.Variable(jnp.zeros(2), name="v")
    optimizer = jk.Adam(0.5)
    optimizer.apply_gradients([(jnp.ones(2), v)])
    optimizer.learning_rate = 0.25
    jk.checkpoint.save(path, optimizer)
    other = jk.Adam(0.5)
    other.build([v])
    with pytest.warns(
        UserWarning, match=r"other numbers, which are not restored: learning_rate 0.25 \(here 0.5\); `hyper="
    ):
        jk.checkpoint.load(path, other)
    assert float(other.learning_rate) == 0.5
    jk.checkpoint.load(path, other, hyper=True)
    assert float(other.learning_rate) == 0.25
    jk.checkpoint.load(path, other)  # equal numbers
    scheduled = jk.Adam(lambda step: 0.125)
    scheduled.build([v])
    jk.checkpoint.load(path, scheduled)
    assert not recwarn


def test_so_are_those_in_the_state_of_a_kernel(tmp_path):
    path, params = tmp_path / "run.safetensors", {"w": jnp.ones(2)}
    kernel = jk.partition({}, default=jk.sgd(0.5, momentum=0.5, inject_hyperparams=True))
    state = kernel.replaced(kernel.init(params), learning_rate=0.25, momentum=0.75)
    jk.checkpoint.save(path, state)
    with pytest.warns(
        UserWarning, match=r"default/learning_rate 0.25 \(here 0.5\), default/momentum 0.75 \(here 0.5\)"
    ):
        jk.checkpoint.load(path, kernel, params)


# --- Keras's callback -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("jax_defaults")
@pytest.mark.parametrize("theirs", [False, True], ids=["ours", "Keras's"])
def test_a_callback_records_fit(theirs):
    schedule = keras.optimizers.schedules.PolynomialDecay(0.5, 10, 0.0)
    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    model.compile((keras.optimizers.SGD if theirs else SGD)(schedule), loss="mse", metrics=["mae"])
    recorder, x = HistoryCallback(every=2), np.ones((20, 2), np.float32)
    model.fit(x, x[:, :1], batch_size=4, epochs=2, verbose=0, callbacks=[recorder])
    history = recorder.history
    assert history["step"].tolist() == [1, 3, 5, 6, 8, 10]
    np.testing.assert_allclose(history["learning_rate"], 0.5 * (1 - (history["step"] - 1) / 10), rtol=1e-5)
    assert np.isfinite(history["loss"]).all() and np.isfinite(history["mae"]).all()


def test_a_callback_refuses():
    with pytest.raises(TypeError, match="`history` must be a `jaxopt_keras.history.History`"):
        HistoryCallback("run.csv")
    with pytest.raises(ValueError, match="`every` must be an integer >= 1"):
        HistoryCallback(every=0)


# --- types ------------------------------------------------------------------------------------------------------------

TYPED = """
import jaxopt_keras as jk
kernel = jk.adam(1e-3)
params: dict[str, float] = {}
new, state = kernel.step(params, kernel.init(params), params)
reveal_type(new)
updates, state = kernel.update(params, state, params)
reveal_type(updates)
jk.adam(state_dtype="int9")
jk.Adam(engine="cuda?")
"""


def test_a_type_checker_sees_results_and_choices(tmp_path: Path):
    (tmp_path / "typed.py").write_text(TYPED)
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, str(tmp_path / "typed.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=300)
    assert 'Type of "new" is "dict[str, float]"' in done.stdout, done.stdout
    assert 'Type of "updates" is "dict[str, float]"' in done.stdout
    assert "int9" in done.stdout and "cuda?" in done.stdout and "2 errors" in done.stdout


def test_a_kernel_is_still_a_transformation_of_optax():
    assert isinstance(jk.adam(), optax.GradientTransformationExtraArgs)
