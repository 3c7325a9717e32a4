"""Keras models train, save and go on with our optimizers, as they do with Keras's own."""

import copy
import pickle
import threading
import warnings

import jax
import jax.experimental.sparse
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest

import jaxopt_keras as jk
from jaxopt_keras.interop import keras as interop
from jaxopt_keras.interop.keras import as_keras
from jaxopt_keras.optimizers import CLASSES, RULES

pytestmark = pytest.mark.usefixtures("jax_defaults")  # Keras leans on implicit promotion
every_class = pytest.mark.parametrize("name", CLASSES)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 4)).astype("float32")
Y = X @ RNG.normal(size=(4, 2)).astype("float32")


def model(width=3, **dense):
    """A perceptron, always with the same values."""
    init = keras.initializers.GlorotUniform(seed=1)
    layers = [keras.layers.Dense(width, activation="tanh", kernel_initializer=init, **dense), keras.layers.Dense(2)]
    layers[1].kernel_initializer = keras.initializers.GlorotUniform(seed=2)
    return keras.Sequential([keras.layers.Input((4,)), *layers])


def fitted(optimizer, epochs=2, made=None, callbacks=(), **compile):
    """A trained model, and its losses."""
    made = made or model()
    made.compile(optimizer=optimizer, loss="mse", **compile)
    return made, more(made, epochs, callbacks)


def more(made, epochs=1, callbacks=()):
    history = made.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, shuffle=False, callbacks=list(callbacks))
    return history.history["loss"]


def arrays(variables):
    return [v.numpy() for v in variables]


def two():
    kernel = np.arange(6, dtype="float32").reshape(2, 3) / 6
    return [keras.Variable(kernel, name="kernel"), keras.Variable(np.ones(3, "float32"), name="bias")]


def some_grads(i=0):
    rng = np.random.default_rng(i)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in [(2, 3), (3,)]]


# --- each class --------------------------------------------------------------------------------------------------


@every_class
def test_a_class_for_each_optimizer_with_the_same_arguments(name):
    cls = getattr(interop, name)
    assert issubclass(cls, keras.optimizers.Optimizer)
    assert cls.__init__.__signature__ == CLASSES[name].__init__.__signature__
    ours, v = cls(), two()
    for i in range(3):
        ours.apply_gradients(zip(some_grads(i), v, strict=True))
    assert int(ours.iterations) == 3


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if "keras" in rule.variants])
def test_the_numbers_are_kerass(name):
    ours, theirs, v, w = getattr(interop, name)(), getattr(keras.optimizers, name)(), two(), two()
    for i in range(3):
        ours.apply_gradients(zip(some_grads(i), v, strict=True))
        theirs.apply_gradients(zip(some_grads(i), w, strict=True))
    for a, b in zip(v, w, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-6)


@every_class
def test_configs_and_names_as_keras_has_them(name):
    made = keras.optimizers.get(f"jaxopt_keras>{name}")
    assert type(made) is getattr(interop, name)
    config = keras.optimizers.serialize(made)
    again = keras.optimizers.deserialize(config)
    assert type(again) is type(made) and again.get_config() == made.get_config()
    assert [v.path for v in again.variables[:2]] == [f"{made.name}/iteration", f"{made.name}/learning_rate"]


def test_keras_adams_variables_have_the_same_order_names_and_values_so_that_its_checkpoints_load():
    ours, theirs = interop.Adam(name="adam", amsgrad=True), keras.optimizers.Adam(name="adam", amsgrad=True)
    v, w = two(), two()
    for optimizer, variables in ((ours, v), (theirs, w)):
        optimizer.apply(some_grads(), variables)
    assert [x.path for x in ours.variables] == [x.path for x in theirs.variables]
    store = {}
    theirs.save_own_variables(store)
    ours.load_own_variables(store)
    for a, b in zip(ours.variables, theirs.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


# --- models ------------------------------------------------------------------------------------------------------


def test_a_model_trains_as_with_kerass_adam():
    ours, theirs = fitted("jaxopt_keras>Adam", 3)[1], fitted("adam", 3)[1]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


class Halving(jk.Optimizer):
    """A custom optimizer of the older kind."""

    def _create_slots(self, var_list):
        for v in var_list:
            self.add_slot(v, "count")

    def _resource_apply_dense(self, grad, var):
        self.get_slot(var, "count").assign_add(jnp.ones_like(grad))
        var.assign_sub(0.5 * self.learning_rate * grad)


def grouped():
    return jk.MultiOptimizer(jk.OptimizerMap(jk.Adam(0.01), {".*bias": jk.SGD(0.01, momentum=0.9)}))


SAVED = {
    "codes": lambda: interop.AdamW(0.001, state_dtype="int8"),
    "ema, accumulation": lambda: interop.Adam(0.01, use_ema=True, gradient_accumulation_steps=2, skip_nonfinite=True),
    "keras's schedule": lambda: interop.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5), momentum=0.9),
    "our schedule": lambda: interop.Nadam(jk.schedules.ExponentialDecay(0.1, 2, 0.5)),
    "groups": lambda: as_keras(grouped()),
    "loss scale": lambda: as_keras(jk.LossScaleOptimizer(jk.Adam(0.01), initial_scale=64.0)),
    "keras's loss scale": lambda: keras.optimizers.LossScaleOptimizer(interop.Adam(0.01)),
    "keras's groups": lambda: keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(interop.Adam(0.01), {".*bias": interop.SGD(0.01)})
    ),
    "custom": lambda: as_keras(Halving(0.01)),
}  # fmt: skip


@pytest.mark.parametrize("what", SAVED)
def test_a_saved_model_goes_on_where_it_was(what, tmp_path):
    width = 1100 if what == "codes" else 3
    first, losses = fitted(SAVED[what](), 1, model(width))
    first.save(tmp_path / "model.keras")
    second = keras.models.load_model(tmp_path / "model.keras", custom_objects={"Halving": Halving})
    assert type(second.optimizer) is type(first.optimizer)
    for a, b in zip(first.optimizer.variables, second.optimizer.variables, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a.value), np.asarray(b.value))
    went_on = more(first)
    # Keras loads `sequential/dense/kernel` as `dense/kernel`, and a code's rounding is drawn by name.
    np.testing.assert_allclose(more(second), went_on, rtol=1e-3 if what == "codes" else 0)
    assert went_on[0] < losses[0]


def test_weights_files_hold_the_state_codes_too(tmp_path):
    made, _ = fitted(interop.AdamW(0.01, state_dtype="int8"), 1, model(1100))
    assert {v.dtype for v in made.optimizer.variables if v.path.endswith("_codes")} == {"int8", "uint8"}
    made.save_weights(tmp_path / "state.weights.h5")
    went_on = more(made)
    made.load_weights(tmp_path / "state.weights.h5")
    assert int(made.optimizer.iterations) == 3
    assert more(made) == went_on


def test_a_transformation_of_optax_trains_and_its_model_is_saved_without_it(tmp_path):
    optimizer = as_keras(jk.Optimizer.from_optax(optax.adam(0.01)))
    made, losses = fitted(optimizer)
    assert losses[1] < losses[0]
    with pytest.warns(UserWarning, match="runs code"):
        optimizer.get_config()
    with warnings.catch_warnings(action="ignore"):
        made.save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="compile=False"):
        keras.models.load_model(tmp_path / "model.keras")
    keras.models.load_model(tmp_path / "model.keras", compile=False)


def test_what_is_wrapped_is_the_same_optimizer():
    inner = jk.SGD(0.01, momentum=0.9, name="mine")
    made, _ = fitted(as_keras(inner), 1)
    assert isinstance(made.optimizer, interop.SGD) and made.optimizer.name == "mine"
    kernel = made.layers[0].kernel
    slot = next(v for v in made.optimizer.variables if v.path.endswith("kernel_momentum"))
    assert int(inner.iterations) == 3
    np.testing.assert_array_equal(inner.get_slot(kernel, "momentum").numpy(), slot.numpy())


def test_variables_may_be_read_while_another_thread_steps():
    optimizer, w = interop.Adam(1.0), keras.Variable(np.zeros((300, 300), "f"), name="w")
    grads = [jnp.ones((300, 300))]
    optimizer.apply(grads, [w])
    stop = threading.Event()

    def step():
        while not stop.is_set():
            optimizer.apply(grads, [w])

    thread = threading.Thread(target=step)
    thread.start()
    try:
        for _ in range(100):
            assert all(np.isfinite(x).all() for x in optimizer.get_weights())
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    made = model(dtype=policy)
    made.dtype_policy = policy
    _, losses = fitted(interop.Adam(0.01), made=made)
    assert isinstance(made.optimizer, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")
    assert losses[1] < losses[0]


def test_our_loss_scale_is_not_wrapped_again_and_skips_what_overflows():
    optimizer = as_keras(jk.LossScaleOptimizer(jk.Adam(0.01), initial_scale=2.0**24))
    made = model(dtype="mixed_float16")
    made.dtype_policy = "mixed_float16"
    fitted(optimizer, made=made)
    assert made.optimizer is optimizer
    assert optimizer.wrapped.skipped > 0 and float(optimizer.dynamic_scale) < 2.0**24
    assert float(optimizer.learning_rate) == pytest.approx(0.01)
    assert int(optimizer.iterations) == 6 - optimizer.wrapped.skipped


def test_frozen_layers_stay_and_have_no_slots():
    made = model()
    made.layers[0].trainable = False
    before = arrays(made.layers[0].weights)
    fitted(interop.Adam(0.1), made=made)
    assert all(map(np.array_equal, before, arrays(made.layers[0].weights)))
    assert len(made.optimizer.variables) == 2 + 4


def test_constraints_of_keras_variables_hold():
    made, _ = fitted(interop.SGD(0.5), made=model(kernel_constraint=keras.constraints.UnitNorm()))
    np.testing.assert_allclose(np.linalg.norm(made.layers[0].kernel.numpy(), axis=0), 1, rtol=1e-5)


# --- callbacks ---------------------------------------------------------------------------------------------------


def test_callbacks_that_read_and_set_the_rate():
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    plateau = keras.callbacks.ReduceLROnPlateau(monitor="loss", factor=0.1, patience=1, min_delta=1e9)
    made, _ = fitted(interop.Adam(0.08), 3, callbacks=[schedule])
    assert float(made.optimizer.learning_rate) == pytest.approx(0.01)
    more(made, 3, [plateau])
    assert float(made.optimizer.learning_rate) == pytest.approx(0.0001)
    assert made.optimizer.get_config()["learning_rate"] == pytest.approx(0.0001)
    assert float(made.optimizer.wrapped.learning_rate) == pytest.approx(0.0001)


@pytest.mark.parametrize("rate", [jk.schedules.CosineDecay(0.1, 9), lambda: 0.1], ids=["schedule", "function"])
def test_a_schedule_cannot_be_set_to_a_number(rate):
    optimizer = interop.SGD(rate)
    assert float(optimizer.learning_rate) == pytest.approx(0.1)
    with pytest.raises(TypeError, match="created with a `LearningRateSchedule`.*Received: learning_rate=0.5"):
        optimizer.learning_rate = 0.5
    assert len(optimizer.variables) == 1


def test_a_rate_becomes_a_schedule_as_in_keras():
    optimizer = interop.Adam(0.1)
    optimizer.learning_rate = keras.optimizers.schedules.PolynomialDecay(0.1, 4)
    assert [v.name for v in optimizer.variables] == ["iteration"]
    with pytest.raises(TypeError, match="`learning_rate` must be a number"):
        interop.Adam(0.1).learning_rate = [0.1, 0.2]


def test_early_stopping_restores_the_best_weights():
    stop = keras.callbacks.EarlyStopping(monitor="loss", patience=1, restore_best_weights=True, min_delta=1e9)
    made, losses = fitted(interop.SGD(0.1), 5, callbacks=[stop])
    assert len(losses) == 2
    once, _ = fitted(interop.SGD(0.1), 1)
    assert all(map(np.array_equal, arrays(made.weights), arrays(once.weights)))


AROUND = {
    "plain": lambda optimizer: optimizer,
    "keras's loss scale": lambda optimizer: keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=8.0),
    "our loss scale": lambda optimizer: as_keras(jk.LossScaleOptimizer(optimizer.wrapped, initial_scale=8.0)),
}


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_averages_are_swapped_in_for_evaluation_and_stay_at_the_end(around):
    seen = []

    class Look(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            seen.append(self.model.layers[0].kernel.numpy())

    inner = interop.SGD(0.1, use_ema=True, ema_momentum=0.5)
    made = model()
    made.compile(optimizer=around(inner), loss="mse")
    swap = keras.callbacks.SwapEMAWeights()
    made.fit(X, Y, batch_size=8, epochs=2, verbose=0, validation_data=(X, Y), callbacks=[swap, Look()])
    kernel = made.layers[0].kernel
    average = inner.wrapped.get_slot(kernel, "average").numpy()
    np.testing.assert_array_equal(seen[-1], average)
    np.testing.assert_array_equal(kernel.numpy(), average)


def test_a_callback_with_its_own_reference_learns_why_and_one_through_the_model_works():
    optimizer, found = interop.Adam(0.1), []

    class Own(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            assert all(v.in_trainer for v in optimizer.variables)  # the trainer has the only copy
            for use in (
                lambda: optimizer.learning_rate,
                lambda: setattr(optimizer, "learning_rate", 0.5),
                lambda: optimizer.iterations,
                lambda: setattr(optimizer, "clipnorm", 1.0),
            ):
                with pytest.raises(RuntimeError, match="through `self.model.optimizer`"):
                    use()
            found.append(int(self.model.optimizer.iterations))
            self.model.optimizer.learning_rate = 0.25
            assert float(optimizer.learning_rate) == 0.25

    fitted(optimizer, 1, callbacks=[Own()])
    assert found == [1, 2, 3]


# --- loops of one's own ------------------------------------------------------------------------------------------


def in_kerass_groups(optimizer):
    return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(optimizer))


@pytest.mark.parametrize("wrap", [lambda optimizer: optimizer, in_kerass_groups], ids=["alone", "in keras's groups"])
def test_a_jitted_loop_agrees_with_eager_calls(wrap):
    eager, pure = (wrap(interop.Adam(0.1, state_dtype="bfloat16", clipnorm=1.0)) for _ in range(2))
    v, w = two(), two()
    pure.build(w)
    step, params, state = jax.jit(pure.stateless_apply), [x.value for x in w], [x.value for x in pure.variables]
    before = arrays(pure.variables)
    for i in range(3):
        eager.apply_gradients(zip(some_grads(i), v, strict=True))
        params, state = step(state, some_grads(i), params)
    assert all(map(np.array_equal, before, arrays(pure.variables)))  # it is pure
    for a, b in zip([*v, *eager.variables], [*params, *state], strict=True):
        np.testing.assert_array_equal(getattr(a, "value", a), b)


def test_an_array_that_was_read_from_the_state_outlives_the_step():
    optimizer, v = interop.SGD(0.1, momentum=0.9), two()
    optimizer.apply(some_grads(), v)
    held, copied = optimizer.variables[2].value, optimizer.variables[2].numpy()
    optimizer.apply(some_grads(1), v)
    np.testing.assert_array_equal(held, copied)
    assert not np.array_equal(optimizer.variables[2].numpy(), copied)


def test_some_variables_at_a_time_no_gradients_and_unknown_variables():
    optimizer, (w, b) = interop.Adam(0.1), two()
    optimizer.build([w, b])
    optimizer.apply([some_grads()[1]], [b])
    assert w.numpy()[0, 0] == 0 and b.numpy()[0] != 1
    assert optimizer.apply([]) is None and int(optimizer.apply_gradients([])) == 1
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([None, some_grads()[1]], [w, b])
    with pytest.raises(ValueError, match="No gradients provided for any variable"):
        optimizer.apply([None, None])
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply(some_grads(), two())
    with pytest.raises(ValueError, match="must hold one gradient for each variable"):
        optimizer.apply(some_grads(), [w])
    with pytest.raises(ValueError, match="`optimizer_variables` must be a list of 6"):
        optimizer.stateless_apply([], some_grads(), [w.value, b.value])
    with pytest.raises(ValueError, match="needs a built optimizer"):
        interop.Adam().stateless_apply([], [], [])


def test_sparse_gradients():
    sparse = jax.experimental.sparse.BCOO((jnp.ones((1, 3)), jnp.array([[1]])), shape=(2, 3))
    dense = jnp.array([[0.0, 0, 0], [1, 1, 1]])
    found = []
    for g in (sparse, dense):
        optimizer, v = interop.Adam(0.1), two()[:1]
        optimizer.apply([g], v)
        params, _ = optimizer.stateless_apply([x.value for x in optimizer.variables], [g], [v[0].value])
        found.append([v[0].numpy(), np.array(params[0])])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)


def test_variables_that_their_gradients_overwrite():
    optimizer, (w, b) = interop.Adam(0.1), two()
    b.overwrite_with_gradient = True
    optimizer.apply(some_grads(), [w, b])
    np.testing.assert_array_equal(b.numpy(), some_grads()[1])
    params, _ = optimizer.stateless_apply(optimizer.variables, some_grads(1), [w, b])
    np.testing.assert_array_equal(params[1], some_grads(1)[1])
    assert len(optimizer.variables) == 2 + 2
    with pytest.raises(ValueError, match="`gradient_accumulation_steps` must be None with"):
        interop.Adam(gradient_accumulation_steps=2).build([w, b])


def test_excluded_variables_do_not_decay():
    optimizer, (w, b) = interop.SGD(0.1, weight_decay=0.5), two()
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.apply([jnp.zeros((2, 3)), jnp.zeros(3)], [w, b])
    assert w.numpy()[1, 2] == pytest.approx(5 / 6 * 0.95) and b.numpy()[0] == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_copies_have_the_state(copied):
    optimizer, v, w = interop.Adam(0.1), two(), two()
    optimizer.apply(some_grads(), v)
    again = copied(optimizer)
    again.build(w)
    for x, y in zip(v, w, strict=True):
        y.assign(x.value)
    for o, variables in ((optimizer, v), (again, w)):
        o.apply(some_grads(1), variables)
    assert all(map(np.array_equal, arrays(v), arrays(w)))


def test_settings_are_attributes_and_may_bring_slots():
    optimizer, v = interop.Adam(0.1, beta_1=0.5), two()
    optimizer.apply(some_grads(), v)
    assert optimizer.beta_1 == 0.5 and optimizer.weight_decay is None and not hasattr(optimizer, "momentum")
    kept = optimizer.variables[2:]
    optimizer.use_ema = True
    assert [x.path for x in optimizer.variables[2:4]] == [f"{optimizer.name}/{n}_average" for n in ("kernel", "bias")]
    assert all(a is b for a, b in zip(kept, optimizer.variables[4:], strict=True))
    optimizer.set_weights([np.array(7, "int32"), *optimizer.get_weights()[1:]])
    assert int(optimizer.iterations) == 7


def test_hooks_that_would_never_run_are_refused():
    with pytest.raises(TypeError, match="`update_step` of Mine would never be called"):
        type("Mine", (interop.Adam,), {"update_step": lambda *_: None})
    with pytest.raises(TypeError, match="must be a `jaxopt_keras.Optimizer`.*from_optax"):
        as_keras(optax.adam(0.1))


# --- many devices ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["data", "model"])
def test_on_eight_devices_a_model_trains_as_on_one(kind):
    devices = keras.distribution.list_devices()
    assert len(devices) == 8
    mesh = keras.distribution.DeviceMesh((4, 2), ["batch", "model"], devices)
    layout = keras.distribution.LayoutMap(mesh)
    layout[".*kernel"] = (None, "model")
    found = {
        "data": keras.distribution.DataParallel(),
        "model": keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch"),
    }[kind]
    _, alone = fitted(interop.Adam(0.01), made=model(4))
    with found.scope():
        made, losses = fitted(interop.Adam(0.01), made=model(4))
    np.testing.assert_allclose(losses, alone, rtol=1e-5)
    kernel = made.trainable_variables[0].value
    slot = next(v for v in made.optimizer.variables if v.path.endswith("kernel_velocity")).value
    assert slot.sharding.is_equivalent_to(kernel.sharding, 2) and len(slot.sharding.device_set) == 8
    assert kernel.sharding.is_fully_replicated == (kind == "data")


class Plain(jk.Optimizer):
    def update_step(self, gradient, variable, learning_rate):
        variable.assign_sub(learning_rate * gradient)


@pytest.mark.parametrize("schedules", [keras.optimizers.schedules, jk.schedules], ids=["Keras's", "ours"])
@pytest.mark.parametrize("face", ["jk", "own class", "interop", "as_keras", "pure"])
def test_accumulation_with_a_schedule_says_what_it_counts(face, schedules):
    schedule = schedules.ExponentialDecay(0.1, 1, 0.5)
    cls = {"interop": interop.SGD, "own class": Plain, "as_keras": lambda *x, **y: as_keras(Plain(*x, **y))}.get(
        face, jk.SGD
    )
    make = (jk if face in ("jk", "own class") else keras).Variable
    if face != "pure":
        with pytest.warns(UserWarning, match='number of updates; Keras.*Pass `schedule_counts="calls"`'):
            cls(schedule, gradient_accumulation_steps=2).build([make(np.ones(2), name="w")])
    cls(schedule, schedule_counts="calls").build([make(np.ones(2), name="w")])  # no warning
    cls(0.1, gradient_accumulation_steps=2).build([make(np.ones(2), name="w")])
    options = {"gradient_accumulation_steps": 2, "schedule_counts": "calls"}
    theirs = keras.optimizers.SGD(
        keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5), gradient_accumulation_steps=2
    )
    expected = stepped(theirs, keras.Variable(np.zeros(1), name="w"))
    if face == "pure":
        kernel, params = jk.sgd(schedule, **options), jnp.zeros(1)
        state = kernel.init(params)
        for _ in range(6):
            params, state = kernel.step(params, state, jnp.ones(1))
        return np.testing.assert_allclose(params, expected, rtol=1e-6)
    optimizer = cls(schedule, **options)
    np.testing.assert_allclose(stepped(optimizer, make(np.zeros(1), name="w")), expected, rtol=1e-6)
    wrapped = getattr(optimizer, "wrapped", optimizer)
    assert wrapped.schedule_counts == "calls"
    assert schedules is not jk.schedules or wrapped.get_config()["schedule_counts"] == "calls"
    np.testing.assert_allclose(optimizer.learning_rate, 0.1 * 0.5**7, rtol=1e-6)  # of the next update: calls 7, 8


def stepped(optimizer, w):
    for _ in range(6):
        optimizer.apply_gradients([(jnp.ones(1), w)])
    return w.numpy()


@pytest.mark.parametrize("first", [False, True], ids=["unfrozen", "frozen"])
def test_layers_frozen_or_unfrozen_after_compile(first):
    made = model()
    made.layers[0].trainable = first
    fitted(as_keras(jk.Adam(0.1)), made=made)
    optimizer = made.optimizer
    kept = {v.path: v.numpy() for v in optimizer.variables}
    kernels = [layer.kernel.numpy() for layer in made.layers]
    made.layers[0].trainable = not first
    optimizer.build(made.trainable_variables)
    for v in optimizer.variables:
        np.testing.assert_array_equal(v.numpy(), kept.get(v.path, np.zeros(v.shape, v.dtype)))
    assert kept.keys() <= {v.path for v in optimizer.variables} and len(optimizer.variables) == 2 + 2 * 4
    more(made)
    moved = [not np.array_equal(layer.kernel.numpy(), k) for layer, k in zip(made.layers, kernels, strict=True)]
    assert moved == [not first, True] and int(optimizer.iterations) == 9


def test_layers_unfrozen_without_another_build():
    optimizer, variables = as_keras(jk.Adam(0.1)), two()
    optimizer.build(variables[:1])
    with pytest.raises(ValueError, match="call `model.optimizer.build\\(model.trainable_variables\\)`"):
        optimizer.stateless_apply([v.value for v in optimizer.variables], some_grads(), [v.value for v in variables])


def test_an_error_in_fit_is_the_one_that_is_raised():
    """Keras sets variables to their averages after an error too, when it has no values."""
    made = model()
    made.layers[0].trainable = False
    fitted(as_keras(jk.Adam(0.1, use_ema=True)), made=made)
    made.layers[0].trainable = True
    with pytest.raises(ValueError, match="After layers were frozen or unfrozen"):
        more(made)


@pytest.mark.parametrize("kind", ["var_names", "var_list", "wrapped"])
def test_a_saved_model_keeps_what_is_excluded_from_decay(tmp_path, kind):
    """A training that is resumed from a file is the one that was not interrupted."""

    def fitted(resume):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])
        optimizer = inner = interop.AdamW(0.01, weight_decay=0.5)
        excluded = (
            {"var_list": [model.layers[0].bias, model.layers[1].bias]}
            if kind == "var_list"
            else {"var_names": ["bias"]}
        )
        inner.exclude_from_weight_decay(**excluded)
        if kind == "wrapped":
            optimizer = interop.as_keras(jk.LossScaleOptimizer(inner.wrapped, 1.0))
        model.compile(optimizer, "mse")
        x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
        for i in range(2):
            model.fit(x, x[:, :1], batch_size=8, epochs=2, shuffle=False, verbose=0)
            if resume and not i:
                model.save(tmp_path / "model.keras")
                model = keras.saving.load_model(tmp_path / "model.keras")
        return model.get_weights()

    for a, b in zip(fitted(True), fitted(False), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_variable_that_a_loaded_model_lacks_is_said(tmp_path):
    """Excluded variables are found by path, and a path that is not there is not passed over in silence."""
    optimizer, x = interop.AdamW(0.01, weight_decay=0.5), np.ones((8, 4), "float32")
    variables = [keras.Variable(np.ones(2), name=name) for name in "ab"]
    optimizer.exclude_from_weight_decay(var_list=variables[:1])
    optimizer.apply([x[0, :2]] * 2, variables)
    again = interop.AdamW.from_config(optimizer.get_config())
    with pytest.warns(UserWarning, match="'a' matches no parameter .argument `var_list`"):
        again.build(variables[1:])


def test_windows_that_are_weighted_or_end_early():
    """In a loop of one's own, in a stateless scope, and by a callback at the end of an epoch of `fit`."""
    w = keras.Variable(np.zeros(2, "float32"))
    optimizer = interop.SGD(1.0, gradient_accumulation_steps=4, weighted_accumulation=True)
    optimizer.apply([np.ones(2, "float32")], [w], weight=1)
    optimizer.apply_gradients([(np.full(2, 4, "float32"), w)], weight=3, flush=True)
    assert w.numpy().tolist() == [-3.25, -3.25] and int(optimizer.iterations) == 1

    class EndOfEpoch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.optimizer.flush()

    model = keras.Sequential([keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    model.build((None, 1))
    model.compile(interop.SGD(0.5, gradient_accumulation_steps=8), loss="mse")
    x = np.ones((3, 1), "float32")
    model.fit(x, x, batch_size=1, epochs=2, verbose=0, callbacks=[EndOfEpoch()])
    assert int(model.optimizer.iterations) == 2  # each of three of eight calls
    np.testing.assert_allclose(model.get_weights()[0], [[1.0]], rtol=1e-6)
