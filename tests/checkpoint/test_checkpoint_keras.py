"""Train in the one, go on in the other: the same trajectory, from Keras and to Keras."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras import checkpoint

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.usefixtures("jax_defaults")

RNG = np.random.default_rng(0)
ORDER = ["kernel", "bias", "cube"]  # which is not that of our dict
SHAPES = {"kernel": (6, 4), "bias": (4,), "cube": (2, 3, 4)}


def drawn(size=1.0):
    return {n: jnp.asarray(size * RNG.normal(size=s), jnp.float32) for n, s in SHAPES.items()}


PARAMS, GRADS = drawn(), [drawn(0.3) for _ in range(8)]
HALF = 3  # in the middle of a window of two
CASES = [
    ("SGD", {}), ("SGD", {"momentum": 0.9, "nesterov": True}), ("SGD", {"momentum": 0.9, "variant": "optax"}),
    ("RMSprop", {}), ("RMSprop", {"momentum": 0.5, "centered": True}), ("Adam", {}), ("Adam", {"amsgrad": True}),
    ("AdamW", {}), ("AdamW", {"gradient_accumulation_steps": 2}), ("Adam", {"use_ema": True}),
    ("Adadelta", {}), ("Adagrad", {}), ("Adamax", {}), ("Adafactor", {}), ("Nadam", {}), ("Ftrl", {}), ("Lion", {}),
    ("Lamb", {}), ("Muon", {}), ("ScheduleFreeAdamW", {}), ("AdamW", {"state_dtype": "int8"}),
]  # fmt: skip
FUNCTIONS = {"RMSprop": "rmsprop", "ScheduleFreeAdamW": "schedule_free_adamw"}
OURS = ("variant", "state_dtype")


def ours(kernel, params, state, grads):
    for g in grads:
        params, state = kernel.step(params, state, g, donate=False)
    return params, state


class Theirs:
    def __init__(self, name, arguments, params):
        self.variables = [keras.Variable(params[n], name=n) for n in ORDER]
        arguments = {n: x for n, x in arguments.items() if n not in OURS}
        self.optimizer = getattr(keras.optimizers, name)(learning_rate=0.05, **arguments)
        self.optimizer.build(self.variables)

    def run(self, grads):
        for g in grads:
            self.optimizer.apply([g[n] for n in ORDER], self.variables)
        return {n: np.array(v.value) for n, v in zip(ORDER, self.variables, strict=True)}


def close(a, b, bar=2e-5):
    """Within the bar of `benchmarks.parity`: a part of the way that they went."""
    for n in ORDER:
        tolerance = bar * np.max(np.abs(b[n] - PARAMS[n]))
        np.testing.assert_allclose(a[n], b[n], rtol=0, atol=tolerance, err_msg=n)


@pytest.mark.parametrize("name, arguments", CASES, ids=str)
def test_from_keras_and_to_keras(name, arguments):
    kernel, bar = getattr(jk, FUNCTIONS.get(name, name.lower()))(0.05, **arguments), 2e-4 if name == "Muon" else 2e-5
    expected = Theirs(name, arguments, PARAMS).run(GRADS)
    first = Theirs(name, arguments, PARAMS)
    params = {n: jnp.asarray(x) for n, x in first.run(GRADS[:HALF]).items()}
    state = checkpoint.from_keras(kernel, params, first.optimizer.variables, ORDER)
    assert int(state.count) == HALF // arguments.get("gradient_accumulation_steps", 1)
    close(ours(kernel, params, state, GRADS[HALF:])[0], expected, bar)

    params, state = ours(kernel, PARAMS, kernel.init(PARAMS), GRADS[:HALF])
    second = Theirs(name, arguments, params)
    values = checkpoint.to_keras(kernel, state, params, ORDER)
    for variable, x in zip(second.optimizer.variables, values, strict=True):
        assert tuple(variable.shape) == x.shape
        variable.assign(x)
    close(second.run(GRADS[HALF:]), expected, bar)


def test_weights_h5(tmp_path):
    path = tmp_path / "model.weights.h5"
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
    model.compile(optimizer=keras.optimizers.Adam(0.05), loss="mse")
    x, y = np.ones((4, 3), np.float32), np.ones((4, 2), np.float32)
    model.fit(x, y, epochs=2, batch_size=4, verbose=0)
    model.save_weights(path)
    kernel, order = jk.adam(0.05, skip_nonfinite=True, use_ema=True), ["dense/kernel", "dense/bias"]
    params = {
        "dense": dict(zip(("kernel", "bias"), (jnp.asarray(v.value) for v in model.trainable_variables), strict=True))
    }
    state = checkpoint.from_keras(kernel, params, path, order)
    assert int(state.count) == 2
    for a, b in ((str(path), model.optimizer), (path, model.optimizer.variables)):
        states = [checkpoint.from_keras(kernel, params, source, order) for source in (a, b)]
        jax.tree.map(np.testing.assert_array_equal, *states)

    plain = jk.adam(0.05)
    moved = jax.tree.map(lambda s: s * 2, checkpoint.from_keras(plain, params, path, order).slots)
    changed = plain.init(params)._replace(count=jnp.int32(7), slots=moved)
    values = checkpoint.to_keras(plain, changed, params, order, path=path)
    model.load_weights(path)
    assert int(model.optimizer.iterations.value) == 7
    for variable, value in zip(model.optimizer.variables, values, strict=True):
        np.testing.assert_array_equal(variable.value, value)


@pytest.mark.parametrize("ours", ["bfloat16", None])
@pytest.mark.parametrize("theirs", ["bfloat16", "float32"])
def test_weights_h5_in_bfloat16(theirs, ours, tmp_path):
    path = tmp_path / "model.weights.h5"
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2, use_bias=False, dtype=theirs)])
    model.compile(optimizer=keras.optimizers.Adam(0.05))
    model.optimizer.build(model.trainable_variables)
    model.save_weights(path)
    kernel, params = jk.adam(0.05, state_dtype=ours), {"w": model.trainable_variables[0].value}
    state = kernel.step(params, kernel.init(params), {"w": jnp.ones((3, 2), theirs)}, donate=False)[1]
    checkpoint.to_keras(kernel, state, params, path=path)
    model.load_weights(path)
    for source in (path, model.optimizer):
        again = checkpoint.from_keras(kernel, params, source)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8), again.slots, state.slots)


def test_into_other_things_around_the_rule():
    first = Theirs("AdamW", {}, PARAMS)
    params = {n: jnp.asarray(x) for n, x in first.run(GRADS[:2]).items()}
    kernel = jk.loss_scaled(jk.adamw(0.05, state_dtype="bfloat16", use_ema=True))
    state = checkpoint.from_keras(kernel, params, first.optimizer, ORDER)
    np.testing.assert_array_equal(state.slots["average"]["cube"], params["cube"])
    rate = jk.adamw(lambda step: 0.05)  # scheduled: then Keras has no variable for the rate
    again = checkpoint.to_keras(rate, checkpoint.from_keras(rate, params, first.optimizer, ORDER), params, ORDER)
    variables = [v.value for v in first.optimizer.variables]
    for a, b in zip(again, [variables[0], *variables[2:]], strict=True):
        np.testing.assert_array_equal(a, b)
    jax.tree.map(
        np.testing.assert_array_equal, checkpoint.from_keras(rate, params, again, ORDER).slots,
        checkpoint.from_keras(rate, params, first.optimizer, ORDER).slots,
    )  # fmt: skip


def test_a_subclass_is_what_it_is_made_of():
    class Mine(jk.rules.Adam):
        pass

    class Factored(jk.rules.Adafactor):
        pass

    for rule, name in ((Mine(0.05), "Adam"), (Factored(0.05), "Adafactor")):
        first = Theirs(name, {}, PARAMS)
        first.run(GRADS[:1])
        kernel = jk.Kernel(rule)
        values = checkpoint.to_keras(
            kernel, checkpoint.from_keras(kernel, PARAMS, first.optimizer, ORDER), PARAMS, ORDER
        )
        assert [x.shape for x in values] == [tuple(v.shape) for v in first.optimizer.variables]
        assert int(values[0]) == 1


def test_the_saved_rate_is_what_the_momentum_holds():
    """Whatever the kernel's own is; without a saved one, that is what there is."""
    saved = -0.01 * jnp.ones(3)
    for rate, variant, variables, expected in [
        (0.1, "optax", [3, 0.01, saved], 1.0),
        (0.1, "optax", [3, saved], 0.1),
        (lambda step: 0.1, "optax", [3, 0.01, saved], 1.0),
        (0.1, "keras", [3, 0.01, saved], -0.01),
        (0.0, "keras", [3, 0.0, saved], -0.01),
    ]:
        kernel = jk.sgd(rate, momentum=0.9, variant=variant)
        state = checkpoint.from_keras(kernel, {"w": jnp.ones(3)}, variables)
        np.testing.assert_allclose(state.slots["momentum"]["w"], expected, rtol=1e-6)


def test_refused(tmp_path):
    variables = Theirs("Adam", {}, PARAMS).optimizer.variables
    for order in (["kernel"], ["kernel", "bias", "bias"], "kernel"):
        with pytest.raises(ValueError, match="`order` must name each of"):
            checkpoint.from_keras(jk.adam(), PARAMS, variables, order)
    with pytest.raises(
        ValueError, match=r"must be those of Keras's Adam: `step` \(\), .*Received: \[\(\), \(\), \(6, 4\)"
    ):
        checkpoint.from_keras(jk.adam(), PARAMS, variables)  # without the order
    with pytest.raises(TypeError, match="must have one rule"):
        checkpoint.from_keras(jk.partition({"bias": jk.sgd()}, default=jk.adam()), PARAMS, variables)
    with pytest.raises(FileNotFoundError):
        checkpoint.from_keras(jk.adam(), PARAMS, tmp_path / "none.weights.h5")
    with pytest.raises(ValueError, match="Use `variant='keras'`"):
        hat = Theirs("Adam", {"amsgrad": True}, PARAMS).optimizer.variables
        checkpoint.from_keras(jk.adam(amsgrad=True, variant="optax"), PARAMS, hat, ORDER)


def test_a_model_made_anew_in_the_same_process(tmp_path):
    """Keras numbers its names on: `sequential_1/dense_2/kernel`."""

    def model():
        layers = [keras.layers.Input((3,)), keras.layers.Dense(3), keras.layers.Dense(3)]
        return keras.Sequential(layers).trainable_variables

    path, one, other = tmp_path / "a.safetensors", jk.Adam(0.1), jk.Adam(0.1)
    first, second = model(), model()
    one.apply([jnp.full(v.shape, i + 1.0) for i, v in enumerate(first)], first)
    checkpoint.save(path, one)
    other.build(second)
    checkpoint.load(path, other)
    for v, w in zip(first, second, strict=True):
        assert v.path != w.path
        np.testing.assert_array_equal(one.get_slot(v, "momentum").numpy(), other.get_slot(w, "momentum").numpy())


def test_a_file_without_an_optimizer(tmp_path):
    path, params = tmp_path / "model.weights.h5", {"w": jnp.ones((3, 2))}
    keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)]).save_weights(path)
    kernel = jk.sgd(0.1)
    with pytest.raises(ValueError, match="must contain an optimizer's variables. Received: a file without"):
        checkpoint.from_keras(kernel, params, path)
    with pytest.raises(ValueError, match="must contain an optimizer's variables. Received: a file without"):
        checkpoint.to_keras(kernel, kernel.init(params), params, path=path)
