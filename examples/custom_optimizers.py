"""Four implementations of gradient descent: two as in TensorFlow 2, one as in Keras 3, and one as a rule.

The first two are TensorFlow 2 programs of which only the import line has changed. All four train the same network on
the same batches, run compiled, and reach the same losses.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.figure import Figure

import jaxopt_keras as jk
import jaxopt_keras.interop.tensorflow as tf  # before: import tensorflow as tf
from command import Parser, progress
from examples import common
from examples.custom_loop import Model, cross_entropy
from jaxopt_keras.language.rule import Clock, Rate, Rule

# --- 1. TensorFlow 2 -------------------------------------------------------------------------------------------------


class SimpleGD(tf.keras.optimizers.Optimizer):
    def __init__(self, learning_rate=0.01, name="SimpleGD", **kwargs):
        super().__init__(name, **kwargs)
        self._learning_rate = self._initial_learning_rate = learning_rate

    def _resource_apply_dense(self, grad, var):
        var_dtype = var.dtype.base_dtype
        lr_t = tf.cast(self._learning_rate, var_dtype)
        var.assign_sub(lr_t * grad)

    def _resource_apply_sparse(self, grad, var):
        raise NotImplementedError("Sparse gradient updates are not supported.")

    def get_config(self):
        config = {
            "learning_rate": self._initial_learning_rate,
        }
        return config


# --- 2. TensorFlow 2, on the flattened gradient and variable ---------------------------------------------------------


class TestGD(tf.keras.optimizers.Optimizer):
    def __init__(self, rad=0.01, use_locking=False, name="TestGD", **kwargs):
        super().__init__(name, **kwargs)
        self._radius = rad

    def build(self, var_list):
        num_dims = len(var_list)
        self._beta = (num_dims - 1) / (num_dims + 1)
        self._B_matrix = np.identity(num_dims)

    def _resource_apply_dense(self, grad, var):
        # Flatten the gradient to a 1D vector
        grad_flat = tf.reshape(grad, [-1])
        # Flatten the variable to a 1D vector
        var_flat = tf.reshape(var, [-1])
        # Update using TensorFlow operations
        var_update = var_flat - 0.01 * grad_flat
        # Reshape the updated variable back to its original shape
        var_update_reshaped = tf.reshape(var_update, var.shape)
        # Update the variable
        var.assign(var_update_reshaped)

    def _resource_apply_sparse(self, grad, var):
        raise NotImplementedError("Sparse gradient updates are not supported.")

    def get_config(self):
        config = {
            "rad": self._radius,
        }
        return config


# --- 3. Keras 3 ------------------------------------------------------------------------------------------------------


class KerasGD(jk.Optimizer):
    """`build` creates the optimizer's slots (here there are none), `update_step` updates one variable."""

    def __init__(self, learning_rate: float = 0.01, **kwargs: Any) -> None:
        super().__init__(learning_rate=learning_rate, **kwargs)

    def build(self, variables: Sequence[Any]) -> None:
        if not self.built:
            super().build(variables)

    def update_step(self, gradient: Array, variable: jk.Variable, learning_rate: Array) -> None:
        self.assign_sub(variable, learning_rate * gradient)


# --- 4. A rule -------------------------------------------------------------------------------------------------------


class Descent(Rule):
    """p <- p - lr g

    A pure function of one array. So it runs in both faces, on packed, sharded and 8-bit state.
    """

    learning_rate: Rate = 0.01

    def update(self, g: Array, p: Array, s: Any, at: Clock) -> tuple[Array, Any]:
        return -at.lr * g, s


# ---------------------------------------------------------------------------------------------------------------------


def train(optimizer: jk.Optimizer, epochs: int) -> list[float]:
    """Train a network with `optimizer`, and return the mean loss of each epoch."""
    data = common.digits()
    x_train = data.x_train.reshape(-1, 64)
    rng = np.random.default_rng(0)
    model = Model(seed=0)

    def loss_fn(x: Array, y: Array) -> Array:
        return cross_entropy(y, model(x))

    history = []
    for _ in range(epochs):
        losses = []
        for x, y in common.batches(x_train, data.y_train, 32, rng):
            loss, gradients = jk.value_and_grad(loss_fn, model.trainable_weights, x, y)
            optimizer.apply_gradients(zip(gradients, model.trainable_weights, strict=True))
            losses.append(float(loss))
        history.append(float(np.mean(losses)))
    return history


def draw(histories: dict[str, list[float]], out: Path) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for width, (name, losses) in zip(
        (9, 6, 3.5, 1.5), histories.items(), strict=True
    ):  # thin lines on top of wide ones
        axes.plot(np.arange(1, len(losses) + 1), losses, linewidth=width, label=name)
    axes.set(title="Gradient descent, written four times", xlabel="epoch", ylabel="cross-entropy (nats)")
    axes.legend()
    common.save(figure, out, "custom_optimizers.png")


def parser() -> Parser:
    return common.parser("examples.custom_optimizers", __doc__)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    optimizers = {
        "SimpleGD (TF 2)": SimpleGD(learning_rate=0.01),
        "TestGD (TF 2)": TestGD(),
        "KerasGD (Keras 3)": KerasGD(learning_rate=0.01),
        "Descent (a rule)": jk.Optimizer.from_rule(Descent(learning_rate=0.01)),
    }
    histories = {}
    with progress("training", len(optimizers)) as tell:
        for i, (name, optimizer) in enumerate(optimizers.items()):
            tell(i, name)
            histories[name] = train(optimizer, 2 if arguments.quick else 20)

    print(f"{'loss in epoch':20s}" + "".join(f"{name:>20s}" for name in histories))
    for epoch, losses in enumerate(zip(*histories.values(), strict=True), start=1):
        print(f"{epoch:<20d}" + "".join(f"{loss:20.6f}" for loss in losses))
    first, *others = (np.array(losses) for losses in histories.values())
    difference = max(float(np.max(np.abs(first - losses))) for losses in others)
    print(f"Greatest difference of a loss between the four: {difference:.1e}")
    print(f"The configs of the first two: {SimpleGD().get_config()}, {TestGD().get_config()}")

    gradient = tf.IndexedSlices(tf.ones((1, 3)), tf.constant([0]), (5, 3))
    try:
        SimpleGD().apply_gradients([(gradient, tf.Variable(jnp.zeros((5, 3))))])
    except NotImplementedError as error:
        print(f"A sparse gradient, one row of five: {error}")
    draw(histories, arguments.out)


if __name__ == "__main__":
    main()
