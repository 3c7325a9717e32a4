"""The custom training loop of Keras's guides: gradients of a batch, then `optimizer.apply_gradients`.

This is the guides' loop. Here `value_and_grad` replaces the tape, and everything else is unchanged:

    for x, y in dataset:
        with tf.GradientTape() as tape:
            logits = model(x)
            loss_value = loss_fn(y, logits)
        gradients = tape.gradient(loss_value, model.trainable_weights)
        optimizer.apply_gradients(zip(gradients, model.trainable_weights))

The example then shows an optimizer's own weights, and gradients that are summed over workers before they are applied.
"""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.figure import Figure

import jaxopt_keras as jk
from command import Parser
from examples import common


class Dense:
    """A layer whose `kernel` and `bias` are variables, which an optimizer updates in place."""

    def __init__(self, inputs: int, units: int, rng: np.random.Generator, name: str = "dense") -> None:
        limit = (6 / (inputs + units)) ** 0.5
        self.kernel = jk.Variable(rng.uniform(-limit, limit, (inputs, units)), dtype=jnp.float32, name=f"{name}/kernel")
        self.bias = jk.Variable(jnp.zeros(units), name=f"{name}/bias")

    @property
    def trainable_weights(self) -> list[jk.Variable]:
        return [self.kernel, self.bias]

    def __call__(self, x: Array) -> Array:
        return x @ self.kernel.value + self.bias.value[None, :]


class Model:
    """Two layers: 64 pixels, 32 hidden units, 10 digits."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.hidden, self.output = Dense(64, 32, rng, "hidden"), Dense(32, 10, rng, "output")

    @property
    def trainable_weights(self) -> list[jk.Variable]:
        return self.hidden.trainable_weights + self.output.trainable_weights

    def __call__(self, x: Array) -> Array:
        return self.output(jax.nn.relu(self.hidden(x)))


def cross_entropy(y: Array, logits: Array) -> Array:
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1))


def training_loop(epochs: int, out: Path) -> None:
    """Train a network with the loop of the guides."""
    common.heading("Training a small network with Adam")
    data = common.digits()
    x_train, x_test = data.x_train.reshape(-1, 64), data.x_test.reshape(-1, 64)
    rng = np.random.default_rng(0)
    model = Model(seed=0)
    optimizer = jk.Adam(learning_rate=0.01)

    def loss_fn(x: Array, y: Array) -> Array:
        return cross_entropy(y, model(x))

    losses, accuracies = [], []
    for epoch in range(1, epochs + 1):
        for x, y in common.batches(x_train, data.y_train, 64, rng):
            # Given a batch, `value_and_grad` compiles the loss in the first call and reuses the program in later calls.
            loss, gradients = jk.value_and_grad(loss_fn, model.trainable_weights, x, y)
            optimizer.apply_gradients(zip(gradients, model.trainable_weights, strict=True))
            losses.append(float(loss))
        accuracies.append(float(jnp.mean(jnp.argmax(model(jnp.asarray(x_test)), axis=1) == data.y_test)))
        print(f"Epoch {epoch:2d}: loss {losses[-1]:.4f}, test accuracy {accuracies[-1]:.1%}")

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(np.arange(1, len(losses) + 1), losses, linewidth=1, label="of each batch")
    left.set(title="Training loss", xlabel="step", ylabel="cross-entropy (nats)", yscale="log")
    left.legend()
    right.plot(np.arange(1, epochs + 1), 100 * np.array(accuracies), "o-", color="C1", label="after each epoch")
    right.set(title="Test accuracy", xlabel="epoch", ylabel="correct (%)")
    right.legend()
    common.save(figure, out, "custom_loop.png")


def optimizer_weights() -> None:
    """Read and set an optimizer's own weights: `[iterations, slots...]`."""
    common.heading("The weights of an optimizer")
    model = Dense(20, 10, np.random.default_rng(0))
    optimizer = jk.RMSprop()
    data, labels = jnp.arange(100.0).reshape(5, 20), jnp.zeros((5, 1))

    optimizer.minimize(lambda: jnp.mean(jnp.square(jnp.tile(labels, 10) - model(data))), model.trainable_weights)
    for variable, array in zip(optimizer.weights, optimizer.get_weights(), strict=True):
        print(f"{variable.name:24s} {array.dtype!s:8s} shape {array.shape}")

    new_weights = [
        np.array(10),  # the number of iterations
        np.ones([20, 10]),  # the state of the kernel
        np.zeros([10]),  # the state of the bias
    ]
    optimizer.set_weights(new_weights)
    print(f"After set_weights: iterations = {int(optimizer.iterations)}")


def aggregated_by_hand() -> None:
    """Apply gradients that were summed over workers before.

    In TensorFlow the sum is `tf.distribute.get_replica_context().all_reduce("sum", grads)`. In JAX it is
    `jax.lax.psum(grads, axis_name)` on real devices; here two workers in one process have half of the batch each.
    """
    common.heading("Aggregating gradients yourself")
    data = common.digits()
    x, y = data.x_train[:64].reshape(-1, 64), data.y_train[:64]
    model, split_model = Model(seed=0), Model(seed=0)

    def batch_loss(x: Array, y: Array) -> Array:
        return cross_entropy(y, model(x))

    optimizer = jk.SGD(learning_rate=0.1)
    _, gradients = jk.value_and_grad(batch_loss, model.trainable_weights, x, y)
    optimizer.apply_gradients(zip(gradients, model.trainable_weights, strict=True))

    def half_loss(x: Array, y: Array) -> Array:
        return cross_entropy(y, split_model(x)) / 2  # the sum over both halves is the mean over the batch

    workers = [
        jk.value_and_grad(half_loss, split_model.trainable_weights, *half)[1]
        for half in ((x[:32], y[:32]), (x[32:], y[32:]))
    ]
    summed = jax.tree.map(jnp.add, *workers)
    split_optimizer = jk.SGD(learning_rate=0.1)
    # This argument is accepted, and so is `skip_gradients_aggregation=True` of later versions.
    split_optimizer.apply_gradients(
        zip(summed, split_model.trainable_weights, strict=True), experimental_aggregate_gradients=False
    )

    difference = max(
        float(jnp.max(jnp.abs(a.value - b.value)))
        for a, b in zip(model.trainable_weights, split_model.trainable_weights, strict=True)
    )
    print(f"Greatest difference of a weight between two halves and one batch: {difference:.1e}")


def parser() -> Parser:
    return common.parser("examples.custom_loop", __doc__)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    training_loop(epochs=2 if arguments.quick else 15, out=arguments.out)
    optimizer_weights()
    aggregated_by_hand()


if __name__ == "__main__":
    main()
