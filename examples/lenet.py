"""LeNet-5 in plain JAX, trained with any optimizer; by default with the TensorFlow 2 class `TestGD`.

The data are scikit-learn's handwritten digits: 1797 real scans of 8 x 8 pixels, enlarged to MNIST's format. With
`--mnist PATH` they are MNIST itself, from Keras's `mnist.npz` (x_train, y_train, x_test, y_test).
"""

import argparse
import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.figure import Figure

import command
import jaxopt_keras as jk
from examples import common
from examples.common import Digits
from examples.custom_optimizers import TestGD
from jaxopt_keras.optimizers import FUNCTIONS

# ---------------------------------------------------------------------------------------------------------------------
# The network

SHAPES = {
    "conv_1/kernel": (5, 5, 1, 6),  # height, width, channels in, channels out
    "conv_1/bias": (6,),
    "conv_2/kernel": (5, 5, 6, 16),
    "conv_2/bias": (16,),
    "dense_1/kernel": (256, 120),
    "dense_1/bias": (120,),
    "dense_2/kernel": (120, 84),
    "dense_2/bias": (84,),
    "dense_3/kernel": (84, 10),
    "dense_3/bias": (10,),
}
assert sum(map(math.prod, SHAPES.values())) == 44_426

Params = Mapping[str, Array]


def init(seed: int = 0) -> dict[str, Array]:
    """Return initial parameters as in Keras: Glorot-uniform kernels (Glorot & Bengio 2010) and zero biases."""
    keys = jax.random.split(jax.random.key(seed), len(SHAPES))
    glorot = jax.nn.initializers.glorot_uniform()
    return {
        name: glorot(key, shape, jnp.float32) if name.endswith("kernel") else jnp.zeros(shape)
        for key, (name, shape) in zip(keys, SHAPES.items(), strict=True)
    }


def conv(x: Array, kernel: Array, bias: Array) -> Array:
    """Apply a convolution without padding, and relu."""
    out = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(out + bias[None, None, None, :])


def max_pool(x: Array) -> Array:
    """Return the maximum of each block of 2 x 2 pixels."""
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))


def dense(x: Array, kernel: Array, bias: Array) -> Array:
    return x @ kernel + bias[None, :]


def logits(params: Params, x: Array) -> Array:
    """Return ten logits for each image of `x`, of shape (n, 28, 28, 1)."""
    x = max_pool(conv(x, params["conv_1/kernel"], params["conv_1/bias"]))
    x = max_pool(conv(x, params["conv_2/kernel"], params["conv_2/bias"]))
    x = x.reshape(x.shape[0], -1)
    x = jax.nn.relu(dense(x, params["dense_1/kernel"], params["dense_1/bias"]))
    x = jax.nn.relu(dense(x, params["dense_2/kernel"], params["dense_2/bias"]))
    return dense(x, params["dense_3/kernel"], params["dense_3/bias"])


def loss(params: Params, x: Array, y: Array) -> Array:
    """Compute the mean cross-entropy of a batch."""
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits(params, x)), y[:, None], axis=1))


@jax.jit
def predict(params: Params, x: Array) -> Array:
    return jnp.argmax(logits(params, x), axis=1)


def predictions(params: Params, x: np.ndarray) -> np.ndarray:
    """Predict digits, in batches of a thousand images."""
    return np.concatenate([predict(params, x[i : i + 1000]) for i in range(0, len(x), 1000)])


def accuracy(params: Params, x: np.ndarray, y: np.ndarray) -> float:
    """Return the fraction of correct predictions."""
    return float(np.mean(predictions(params, x) == y))


# ---------------------------------------------------------------------------------------------------------------------
# The data


def load(mnist: Path | None = None) -> Digits:
    """Load MNIST or scikit-learn's digits as images of shape (28, 28, 1), with mean 0 and variance 1."""
    data = enlarged_digits() if mnist is None else read_mnist(mnist)
    mean, deviation = data.x_train.mean(), data.x_train.std()
    return data._replace(x_train=(data.x_train - mean) / deviation, x_test=(data.x_test - mean) / deviation)


def enlarged_digits() -> Digits:
    """Load scikit-learn's digits in MNIST's format: 20 x 20 pixels with a margin of 4 pixels."""
    small = common.digits()

    def enlarged(x: np.ndarray) -> np.ndarray:
        large = jax.image.resize(x[..., None], (len(x), 20, 20, 1), "bilinear")
        return np.pad(large, ((0, 0), (4, 4), (4, 4), (0, 0)))

    return small._replace(x_train=enlarged(small.x_train), x_test=enlarged(small.x_test))


def read_mnist(path: Path) -> Digits:
    """Read Keras's `mnist.npz`.

    Raises:
        ValueError: if the file lacks one of its arrays.
    """
    with np.load(path) as file:
        missing = sorted({"x_train", "y_train", "x_test", "y_test"} - set(file))
        if missing:
            raise ValueError(f"`{path}` must be Keras's mnist.npz. Received: a file without {missing}")
        x_train, x_test = ((file[name] / 255).astype(np.float32)[..., None] for name in ("x_train", "x_test"))
        return Digits(x_train, file["y_train"].astype(np.int32), x_test, file["y_test"].astype(np.int32))


def batches(data: Digits, size: int, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield one epoch of images, each shifted randomly by up to two pixels: augmentation of a small data set."""
    for x, y in common.batches(data.x_train, data.y_train, size, rng):
        wide = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
        corners = rng.integers(0, 5, (size, 2))
        yield np.stack([image[i : i + 28, j : j + 28] for image, (i, j) in zip(wide, corners, strict=True)]), y


# ---------------------------------------------------------------------------------------------------------------------
# The training


GROUPS = {"kernels": "kernel$", "biases": "bias$"}


def train(
    optimizer: jk.Optimizer, data: Digits, epochs: int, seed: int = 0
) -> tuple[dict[str, Array], jk.history.History]:
    """Train with `optimizer`, and return the parameters and the history of the run."""
    variables = {name: jk.Variable(array, name=name) for name, array in init(seed).items()}
    trainable = list(variables.values())

    def loss_fn(x: Array, y: Array) -> Array:
        return loss({name: v.value for name, v in variables.items()}, x, y)

    rng = np.random.default_rng(seed)
    history = jk.history.History(every=5, groups=GROUPS)
    steps = epochs * (len(data.x_train) // 64)
    with command.progress("LeNet-5", steps) as tell:
        for _ in range(epochs):
            for x, y in batches(data, 64, rng):
                value, gradients = jk.value_and_grad(loss_fn, trainable, x, y)
                history.apply_gradients(optimizer, zip(gradients, trainable, strict=True), loss=value)
                tell(len(history), history.line)
    return {name: v.value for name, v in variables.items()}, history


def draw(losses: np.ndarray, predicted: np.ndarray, data: Digits, name: str, out: Path) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(np.arange(1, len(losses) + 1), losses, linewidth=1, label=f"{name}, each batch")
    left.set(title="Training loss of LeNet-5", xlabel="step", ylabel="cross-entropy (nats)", yscale="log")
    left.legend()

    rows, columns, size = 4, 6, 28
    images = data.x_test[: rows * columns].reshape(rows, columns, size, size)
    right.imshow(images.swapaxes(1, 2).reshape(rows * size, columns * size), cmap="gray_r")
    for i, (digit, true) in enumerate(zip(predicted[: rows * columns], data.y_test, strict=False)):
        place = (i % columns * size + 1, i // columns * size + 1)
        right.annotate(str(digit), place, color="C2" if digit == true else "red", weight="bold", va="top")
    right.set(title="Test images and predictions (red: wrong)", xticks=[], yticks=[])
    common.save(figure, out, "lenet.png")


def mnist_file(text: str) -> Path:
    """The type of the option: a file in the format of Keras's mnist.npz."""
    path = command.input_file(text)
    try:
        load(path)
    except (ValueError, OSError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return path


def options(parser: command.Parser) -> command.Parser:
    """Add the options of all programs that train this network."""
    add = parser.add_argument
    add("--mnist", type=mnist_file, metavar="PATH", help="Keras's mnist.npz, instead of scikit-learn's digits")
    add("--epochs", type=command.count, metavar="N", help="number of epochs")
    add(
        "--seed", type=command.index, default=0, metavar="N",
        help="seed of the initial parameters and of the order of the data",
    )  # fmt: skip
    return parser


def tensorboard_folder(text: str) -> Path:
    """The type of the option: a folder, if the package that writes to it is installed."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise argparse.ArgumentTypeError("needs tensorboardX: pip install '.[tensorboard]'")
    return command.output_folder(text)


def parser() -> command.Parser:
    parser = options(common.parser("examples.lenet", __doc__))
    parser.add_argument(
        "--optimizer", metavar="NAME", choices=[*FUNCTIONS],
        help=f"{', '.join(FUNCTIONS)} (default: TestGD of custom_optimizers)",
    )  # fmt: skip
    parser.add_argument("--tensorboard", type=tensorboard_folder, metavar="DIR", help="folder for the run's scalars")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    optimizer = TestGD() if arguments.optimizer is None else jk.get(arguments.optimizer)
    data = load(arguments.mnist)
    if arguments.quick:
        data = data._replace(x_train=data.x_train[:320], y_train=data.y_train[:320])
    epochs = arguments.epochs or (1 if arguments.quick else 5 if arguments.mnist else 40)

    print(f"{len(data.x_train)} training images, {len(data.x_test)} test images, 44,426 parameters, {optimizer}")
    params, history = train(optimizer, data, epochs, arguments.seed)
    predicted = predictions(params, data.x_test)
    print(f"Test accuracy: {np.mean(predicted == data.y_test):.4f}")
    draw(history["loss"], predicted, data, type(optimizer).__name__, arguments.out)
    common.save(history.plot(), arguments.out, "lenet_history.png")
    history.csv(arguments.out / "lenet_history.csv")
    if arguments.tensorboard is not None:
        history.tensorboard(arguments.tensorboard)


if __name__ == "__main__":
    main()
