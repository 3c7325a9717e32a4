"""Programs of TensorFlow 2's time run on the namespace that stands in for it."""

import re
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
import jaxopt_keras.interop.tensorflow as tf
from examples import custom_optimizers  # not its names: pytest would take TestGD for a test
from jaxopt_keras.optimizers import CLASSES

SIMPLE, TEST = custom_optimizers.SimpleGD, custom_optimizers.TestGD
SHAPES = {"scalar": (), "bias": (5,), "kernel": (4, 5), "convolution": (3, 3, 2, 4)}


def variables_and_gradients() -> tuple[list[Any], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    variables = [tf.Variable(rng.normal(size=s), dtype=tf.float32, name=n) for n, s in SHAPES.items()]
    return variables, [rng.normal(size=s).astype(np.float32) for s in SHAPES.values()]


# --- the custom optimizers of the examples ---------------------------------------------------------------------------


@pytest.mark.parametrize("make", [SIMPLE, TEST])
def test_custom_optimizer_descends(make: Any):
    optimizer = make()
    variables, gradients = variables_and_gradients()
    before = [v.numpy() for v in variables]
    for _ in range(3):
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
    for v, b, g in zip(variables, before, gradients, strict=True):
        np.testing.assert_allclose(v.numpy(), b - 3 * 0.01 * g, rtol=1e-5, atol=1e-6)
    assert int(optimizer.iterations) == 3


def test_rate_of_custom_optimizer_can_be_set():
    optimizer = SIMPLE(learning_rate=0.5)
    w = tf.Variable([1.0, 2.0])
    optimizer.apply_gradients([(np.ones(2, np.float32), w)])
    optimizer.learning_rate = 0.25
    optimizer.apply_gradients([(np.ones(2, np.float32), w)])
    np.testing.assert_allclose(w.numpy(), [0.25, 1.25])


def test_build_without_super_is_called_with_the_variables():
    optimizer = TEST()
    variables, gradients = variables_and_gradients()
    optimizer.apply_gradients(zip(gradients, variables, strict=True))
    assert optimizer._beta == pytest.approx(3 / 5)
    np.testing.assert_array_equal(optimizer._B_matrix, np.identity(4))


@pytest.mark.parametrize("make", [SIMPLE, TEST])
def test_refused_sparse_gradient_changes_nothing(make: Any):
    optimizer = make()
    table, bias = tf.Variable(tf.ones((4, 2))), tf.Variable(tf.ones(3))
    rows = tf.IndexedSlices(tf.ones((1, 2)), tf.constant([1]), (4, 2))
    with pytest.raises(NotImplementedError, match="Sparse gradient updates are not supported"):
        optimizer.apply_gradients([(jnp.ones(3), bias), (rows, table)])
    assert int(optimizer.iterations) == 0
    assert bias.numpy().tolist() == [1, 1, 1] and table.numpy().sum() == 8


@pytest.mark.parametrize(("make", "config"), [(SIMPLE, {"learning_rate": 0.25}), (TEST, {"rad": 0.5})])
def test_config_without_a_name(make: Any, config: dict[str, float]):
    optimizer = make(**config)
    assert optimizer.get_config() == config
    assert make.from_config(config).get_config() == config
    described = tf.keras.optimizers.serialize(optimizer)
    again = tf.keras.optimizers.deserialize(described, custom_objects={make.__name__: make})
    assert type(again) is make and again.get_config() == config


class Momentum(tf.keras.optimizers.Optimizer):
    """As TensorFlow 2's guide writes one: hyperparameters, slots, a group of operations."""

    def __init__(self, learning_rate=0.01, momentum=0.9, name="Momentum", **kwargs):
        super().__init__(name, **kwargs)
        self._set_hyper("learning_rate", kwargs.get("lr", learning_rate))
        self._set_hyper("momentum", momentum)

    def _create_slots(self, var_list):
        for var in var_list:
            self.add_slot(var, "trace")

    def _resource_apply_dense(self, grad, var, apply_state=None):
        var_dtype = var.dtype.base_dtype
        lr_t = self._get_hyper("learning_rate", var_dtype)
        mu = self._get_hyper("momentum", var_dtype)
        trace = self.get_slot(var, "trace")
        trace_t = trace.assign(tf.add(tf.multiply(mu, trace), grad))
        var_update = var.assign_sub(lr_t * trace_t)
        return tf.group(*[var_update, trace_t])


def test_slots_and_hyperparameters():
    variables, gradients = variables_and_gradients()
    others, _ = variables_and_gradients()
    ours = Momentum(learning_rate=0.1)
    theirs = tf.keras.optimizers.SGD(learning_rate=0.1, momentum=0.9)  # the same, at a constant rate
    for _ in range(3):
        ours.apply_gradients(zip(gradients, variables, strict=True))
        theirs.apply_gradients(zip(gradients, others, strict=True))
    for a, b in zip(variables, others, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-6)
    assert ours.get_slot_names() == ["trace"]


# --- the namespace ---------------------------------------------------------------------------------------------------


def test_optimizers_are_ours():
    for name, optimizer in CLASSES.items():
        assert getattr(tf.keras.optimizers, name) is optimizer
    assert tf.keras.optimizers.Optimizer is tf.optimizers.Optimizer is tf.keras.optimizers.legacy.Optimizer
    assert isinstance(tf.keras.optimizers.get("adam"), jk.Optimizer)
    schedule = tf.keras.optimizers.schedules.ExponentialDecay(1e-2, decay_steps=10_000, decay_rate=0.9)
    assert float(tf.keras.optimizers.SGD(learning_rate=schedule).learning_rate) == pytest.approx(1e-2)


def test_variable_takes_the_arguments_of_tf():
    a = tf.Variable(initial_value=0, dtype=tf.float32)
    assert a.dtype == tf.float32 and a.dtype.base_dtype == jnp.float32 and a.shape == ()
    frozen = tf.Variable([1, 2], False, name="frozen")
    assert not frozen.trainable and frozen.name == "frozen" and frozen.dtype == tf.int32
    assert frozen.read_value().tolist() == [1, 2]
    assert tf.Variable(lambda: tf.zeros((2, 3))).shape == (2, 3)


def test_regression_of_scalars():
    """Variables in TF's functions, and a gradient step by hand."""
    a, b = (tf.Variable(initial_value=0, dtype=tf.float32, name=name) for name in "ab")
    x = np.linspace(0, 1, 20)
    y = tf.convert_to_tensor(1 + 2 * x, dtype=tf.float32)

    def loss():
        y_pred = tf.add(a, tf.multiply(b, tf.convert_to_tensor(x, dtype=tf.float32)))
        return tf.reduce_sum(tf.square(tf.subtract(y, y_pred)))

    for _ in range(300):
        _, (da, db) = jk.value_and_grad(loss, [a, b])
        a.assign_sub(da * 0.03)
        b.assign_sub(db * 0.03)
    assert float(a) == pytest.approx(1, abs=1e-2) and float(b) == pytest.approx(2, abs=2e-2)


X = np.array([[1.0, 4.0], [9.0, 16.0]], np.float32)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda v: tf.cast(v, tf.int32), X.astype(int)),
        (lambda v: tf.cast(0.5, v.dtype), np.float32(0.5)),
        (lambda v: tf.convert_to_tensor(v), X),
        (lambda v: tf.identity(v, name="same"), X),
        (lambda v: tf.constant([1.0, 2.0], dtype=tf.float16), np.array([1, 2], np.float16)),
        (lambda v: tf.reshape(v, [-1], name="flat"), X.ravel()),
        (lambda v: tf.transpose(v), X.T),
        (lambda v: tf.concat([v, v], axis=0), np.concatenate([X, X])),
        (lambda v: tf.stack([v, v]), np.stack([X, X])),
        (lambda v: tf.size(v), np.int32(4)),
        (lambda v: tf.zeros_like(v), np.zeros_like(X)),
        (lambda v: tf.ones_like(v), np.ones_like(X)),
        (lambda v: tf.add(v, 1.0), X + 1),
        (lambda v: tf.subtract(v, v), X * 0),
        (lambda v: tf.multiply(2, v), X * 2),
        (lambda v: tf.divide(v, 2), X / 2),
        (lambda v: tf.negative(v), -X),
        (lambda v: tf.abs(-v), X),
        (lambda v: tf.sign(v), np.sign(X)),
        (lambda v: tf.square(v), X**2),
        (lambda v: tf.sqrt(v), X**0.5),
        (lambda v: tf.math.sqrt(v), X**0.5),
        (lambda v: tf.math.rsqrt(v), X**-0.5),
        (lambda v: tf.pow(v, 2), X**2),
        (lambda v: tf.exp(-v), np.exp(-X)),
        (lambda v: tf.math.log(v), np.log(X)),
        (lambda v: tf.maximum(v, 5), np.maximum(X, 5)),
        (lambda v: tf.minimum(v, 5), np.minimum(X, 5)),
        (lambda v: tf.clip_by_value(v, 2.0, 5.0), X.clip(2, 5)),
        (lambda v: tf.where(v > 5, v, tf.zeros_like(v)), np.where(X > 5, X, 0)),
        (lambda v: tf.matmul(v, v), X @ X),
        (lambda v: tf.norm(v), np.linalg.norm(X)),
        (lambda v: tf.reduce_sum(v), X.sum()),
        (lambda v: tf.reduce_sum(v, axis=1, keepdims=True), X.sum(1, keepdims=True)),
        (lambda v: tf.reduce_mean(v, 0), X.mean(0)),
        (lambda v: tf.reduce_max(v), X.max()),
        (lambda v: tf.reduce_min(v), X.min()),
        (lambda v: v[tf.newaxis], X[None]),
    ],
)
def test_functions_take_variables(call: Any, expected: Any):
    result = call(tf.Variable(X))
    assert isinstance(result, tf.Tensor | int)  # an int: the size
    np.testing.assert_allclose(np.asarray(result), expected, rtol=1e-6)


def test_gradients_summed_by_hand():
    w = tf.Variable([1.0, 2.0])
    gradients = [np.ones(2, np.float32)]
    gradients = tf.distribute.get_replica_context().all_reduce("sum", gradients)
    tf.keras.optimizers.SGD(0.5).apply_gradients(
        zip(gradients, [w], strict=True), experimental_aggregate_gradients=False
    )
    assert w.numpy().tolist() == [0.5, 1.5]


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        ("GradientTape", "jaxopt_keras.value_and_grad"),
        ("GradientTape", "optimizer.minimize"),
        ("keras.Sequential", "KERAS_BACKEND=jax"),
        ("audio", "for others, use `jax.numpy`"),
        ("math.sqroot", "Did you mean `sqrt`"),
        ("linalg.quantum", "There are: band_part, cholesky,"),
    ],
)
def test_what_is_missing_says_what_to_do(path: str, remedy: str):
    *parents, name = path.split(".")
    place: Any = tf
    for parent in parents:
        place = getattr(place, parent)
    assert not hasattr(place, name)
    with pytest.raises(AttributeError, match=re.escape(remedy)) as caught:
        getattr(place, name)
    assert f"`{path}`" in str(caught.value)


def test_tensorflow_is_not_imported():
    assert "tensorflow" not in sys.modules
