"""LeNet-5 on handwritten digits, trained by several optimizers, each in both faces.

The stateful face updates variables in place, as Keras does:

    loss, gradients = jk.value_and_grad(loss_fn, variables, x, y)
    jk.Adam(...).apply_gradients(zip(gradients, variables))

The pure face is functions of arrays, used here in one compiled and donated training step:

    loss, gradients = jax.value_and_grad(loss_fn)(params, x, y)
    params, state = jk.adam(...).step(params, state, gradients)

Both do the same arithmetic, so their losses must agree up to rounding. Otherwise the demo fails.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import jaxopt_keras as jk
from command import Parser
from examples import common, lenet
from examples.common import Digits

BATCH = 64
EPOCHS = {"digits": 12, "mnist": 1}
TOLERANCE = 1e-4  # of a loss: rounding errors
COMPARED = 50  # steps: in some hundred, rounding errors grow to any size, sooner or later by the processor
LEAST_ACCURACY = 0.97  # of Adam on the digits' test data


class Choice(NamedTuple):
    """An optimizer in both faces, and its settings. The learning rate is the peak of a cosine decay."""

    title: str
    stateful: Callable[..., jk.Optimizer]
    pure: Callable[..., jk.Kernel]
    settings: dict[str, Any]


def as_matrix(path: str, shape: tuple[int, ...]) -> str | None:
    """See kernels of convolutions as matrices, too."""
    return "rows... columns" if len(shape) > 1 else None


# The rates were chosen with `--validate`, without using the test data.
CHOICES = {
    "adam": Choice("Adam", jk.Adam, jk.adam, {"learning_rate": 0.005}),
    "adamw": Choice("AdamW", jk.AdamW, jk.adamw, {"learning_rate": 0.005, "weight_decay": 0.05}),
    "sgd": Choice("SGD, Nesterov", jk.SGD, jk.sgd, {"learning_rate": 0.02, "momentum": 0.9, "nesterov": True}),
    "rmsprop": Choice("RMSprop", jk.RMSprop, jk.rmsprop, {"learning_rate": 0.003}),
    "lion": Choice("Lion", jk.Lion, jk.lion, {"learning_rate": 0.0015}),
    "muon": Choice("Muon", jk.Muon, jk.muon, {"learning_rate": 0.01, "matrices": as_matrix}),
}


class Run(NamedTuple):
    """Results of training with one optimizer in one face."""

    losses: NDArray[np.float64]  # of each step
    seconds: NDArray[np.float64]  # of each step
    accuracy: float


Batch = tuple[np.ndarray, np.ndarray]
Steps = Iterator[tuple[float, float]]  # the loss and the seconds of each step


# ---------------------------------------------------------------------------------------------------------------------
# The two faces


class Stateful:
    """LeNet-5 with variables. All optimizers use the same variables, so the loss is compiled once."""

    def __init__(self) -> None:
        self.variables = {name: jk.Variable(array, name=name) for name, array in lenet.init().items()}

    def loss(self, x: Array, y: Array) -> Array:
        return lenet.loss({name: v.value for name, v in self.variables.items()}, x, y)

    def train(self, optimizer: jk.Optimizer, start: lenet.Params, data: Iterator[Batch]) -> Steps:
        trainable = list(self.variables.values())
        for name, variable in self.variables.items():
            variable.assign(start[name])
        for x, y in data:
            began = time.perf_counter()
            loss, gradients = jk.value_and_grad(self.loss, trainable, x, y)
            optimizer.apply_gradients(zip(gradients, trainable, strict=True))
            jax.block_until_ready([v.value for v in trainable])
            yield float(loss), time.perf_counter() - began

    @property
    def params(self) -> lenet.Params:
        return {name: v.value for name, v in self.variables.items()}


class Pure:
    """LeNet-5 with a dict of arrays."""

    params: lenet.Params

    def train(self, kernel: jk.Kernel, start: lenet.Params, data: Iterator[Batch]) -> Steps:
        def step(params: lenet.Params, state: Any, x: Array, y: Array) -> Any:
            loss, gradients = jax.value_and_grad(lenet.loss)(params, x, y)
            params, state = kernel.step(params, state, gradients)
            return params, state, loss

        # Donated: the new parameters and state reuse the memory of the old ones.
        compiled = jax.jit(step, donate_argnums=(0, 1))
        self.params, state = jax.tree.map(jax.numpy.copy, start), kernel.init(start)
        for x, y in data:
            began = time.perf_counter()
            self.params, state, loss = compiled(self.params, state, x, y)
            jax.block_until_ready((self.params, state))
            yield float(loss), time.perf_counter() - began


# ---------------------------------------------------------------------------------------------------------------------
# The comparison


def batches(data: Digits, epochs: int, seed: int) -> Iterator[Batch]:
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        yield from lenet.batches(data, BATCH, rng)


def compare(
    choices: Sequence[Choice], data: Digits, epochs: int, seed: int, console: Console
) -> dict[str, tuple[Run, Run]]:
    """Train with each optimizer, and return the runs of its pure and its stateful face by its title."""
    steps = epochs * (len(data.x_train) // BATCH)
    start = lenet.init(seed)
    faces = {"pure": Pure(), "stateful": Stateful()}
    runs: dict[str, list[Run]] = {choice.title: [] for choice in choices}
    with Progress(
        TextColumn("{task.description:24s}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        for choice in choices:
            settings = choice.settings | {
                "learning_rate": jk.schedules.CosineDecay(choice.settings["learning_rate"], steps)
            }
            makers = {"pure": choice.pure, "stateful": choice.stateful}
            for name, face in faces.items():
                task = progress.add_task(f"{choice.title}, {name}", total=steps, loss=float("nan"))
                history = []
                for loss, seconds in face.train(makers[name](**settings), start, batches(data, epochs, seed)):
                    history.append((loss, seconds))
                    progress.update(task, advance=1, loss=loss)
                losses, times = np.array(history).T
                runs[choice.title].append(Run(losses, times, lenet.accuracy(face.params, data.x_test, data.y_test)))
                if not console.is_terminal:
                    console.print(f"{choice.title}, {name}: {steps} steps, loss {losses[-1]:.4f}")
    return {title: (pure, stateful) for title, (pure, stateful) in runs.items()}


def difference(pure: Run, stateful: Run) -> float:
    """Return the greatest difference between the losses of both faces in the first steps."""
    return float(np.max(np.abs(pure.losses - stateful.losses)[:COMPARED]))


def last_epoch(run: Run, epochs: int) -> float:
    """Return the mean loss of the last epoch."""
    return float(np.mean(run.losses[-(len(run.losses) // epochs) :]))


def table(runs: dict[str, tuple[Run, Run]], epochs: int, held_out: str) -> Table:
    result = Table(title="LeNet-5: final loss is the last epoch's mean, step time the median", title_justify="left")
    result.add_column("optimizer")
    for column in (f"{held_out} accuracy", "final loss", "step, pure", "step, stateful", "faces differ by"):
        result.add_column(column, justify="right")
    for title, (pure, stateful) in runs.items():
        result.add_row(
            title,
            f"{pure.accuracy:.2%}",
            f"{last_epoch(pure, epochs):.4f}",
            f"{1e3 * np.median(pure.seconds):.1f} ms",
            f"{1e3 * np.median(stateful.seconds):.1f} ms",
            f"{difference(pure, stateful):.1e}",
        )
    return result


def draw(runs: dict[str, tuple[Run, Run]], epochs: int, out: Path) -> None:
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    window = 1
    for title, (pure, _) in runs.items():
        window = len(pure.losses) // epochs
        smooth = np.convolve(pure.losses, np.ones(window) / window, mode="valid")
        left.plot(np.arange(window, len(pure.losses) + 1), smooth, label=title)
    ylabel = f"cross-entropy, mean of {window} steps (nats)"
    left.set(title="Training loss of LeNet-5", xlabel="step", ylabel=ylabel, yscale="log")
    left.legend()

    places = np.arange(len(runs))
    for i, face in enumerate(("pure", "stateful")):
        times = [1e3 * np.median(run[i].seconds) for run in runs.values()]
        right.barh(places + (i - 0.5) * 0.4, times, height=0.4, label=f"{face} face")
    right.set_yticks(places, list(runs))
    right.invert_yaxis()
    right.margins(x=0.45)  # room for the legend
    right.set(title="Time of a training step", xlabel="median (ms)", ylabel="optimizer")
    right.legend(loc="upper right")
    common.save(figure, out, "demo.png")


def for_validation(data: Digits) -> Digits:
    """Return the training data, split into training data and a fifth as validation data."""
    n = len(data.x_train) * 4 // 5
    return Digits(data.x_train[:n], data.y_train[:n], data.x_train[n:], data.y_train[n:])


def parser() -> Parser:
    parser = lenet.options(common.parser("examples.demo", __doc__))
    parser.add_argument(
        "--optimizers", nargs="+", choices=CHOICES, default=list(CHOICES), metavar="NAME", help=", ".join(CHOICES)
    )
    parser.add_argument(
        "--validate",
        action="store_true",
        help="validate on a held-out part of the training data instead of the test data",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    began = time.perf_counter()
    arguments = parser().parse_args(argv)
    console = Console()
    if not console.is_terminal:
        console.width = 110  # of the table in a file

    data = lenet.load(arguments.mnist)
    held_out = "validation" if arguments.validate else "test"
    data = for_validation(data) if arguments.validate else data
    default_epochs = EPOCHS["mnist" if arguments.mnist else "digits"]
    epochs = arguments.epochs or (1 if arguments.quick else default_epochs)
    choices = [CHOICES[name] for name in arguments.optimizers]
    console.print(
        f"{len(data.x_train)} training images, {len(data.x_test)} {held_out} images; "
        f"{len(choices)} optimizers, two faces of each, {epochs} epochs"
    )
    runs = compare(choices, data, epochs, arguments.seed, console)
    console.print(table(runs, epochs, held_out))
    draw(runs, epochs, arguments.out)
    console.print(f"Done in {time.perf_counter() - began:.0f} s")

    for title, (pure, stateful) in runs.items():
        if not difference(pure, stateful) <= TOLERANCE:
            sys.exit(f"The faces of {title} must agree. Their losses differ by {difference(pure, stateful):.1e}.")
    if "Adam" in runs and epochs >= default_epochs and runs["Adam"][0].accuracy < LEAST_ACCURACY:
        sys.exit(f"Adam should recognise {LEAST_ACCURACY:.0%} of the digits: {runs['Adam'][0].accuracy:.2%}.")


if __name__ == "__main__":
    main()
