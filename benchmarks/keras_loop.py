"""Speed of Keras models and loops with our classes and with Keras's: `python -m benchmarks.keras_loop`.

Two comparisons, both with Adam, in interleaved rounds: a step of a model in `fit`, and an eager step over a hundred
variables, which Keras updates one by one.
"""

import os

os.environ["KERAS_BACKEND"] = "jax"

from collections.abc import Callable, Sequence
from typing import Any

import jax
import keras
import numpy as np

from benchmarks.timing import LIMIT, Spread, interleaved
from command import Parser, positive, progress
from jaxopt_keras.interop import keras as ours

FACES: dict[str, Any] = {"keras.optimizers.Adam": keras.optimizers.Adam, "interop.keras.Adam": ours.Adam}
THEIRS, OURS = FACES
STEPS = 200
FIT: dict[str, Any] = {"batch_size": 32, "shuffle": False, "verbose": 0}


class Fit:
    """An epoch of `STEPS` batches of 32 of a perceptron 64-256-256-10; times are for a single step."""

    def __init__(self, optimizer: Any) -> None:
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Dense(256, activation="relu") for _ in range(2)]
        self.model = keras.Sequential([keras.layers.Input((64,)), *layers, keras.layers.Dense(10)])
        self.model.compile(optimizer=optimizer, loss="mse")
        rng = np.random.default_rng(0)
        x = rng.normal(size=(32 * STEPS, 64)).astype(np.float32)
        self.data = x, np.tanh(x @ rng.normal(size=(64, 10)).astype(np.float32))

    def losses(self) -> list[float]:
        """Return the running mean of the loss after each batch of one epoch."""
        found: list[float] = []
        note = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: found.append(logs["loss"]))
        self.model.fit(*self.data, callbacks=[note], **FIT)
        return found

    def step(self) -> None:
        self.model.fit(*self.data, **FIT)

    def block(self) -> None:
        pass  # `fit` waits for its losses


class Eager:
    """`apply` on a hundred variables of 64 x 64."""

    def __init__(self, optimizer: Any) -> None:
        rng = np.random.default_rng(0)
        self.optimizer = optimizer
        self.variables = [keras.Variable(rng.normal(size=(64, 64)).astype(np.float32)) for _ in range(100)]
        self.grads = [jax.numpy.asarray(rng.normal(size=(64, 64)), "float32") for _ in self.variables]

    def step(self) -> None:
        self.optimizer.apply(self.grads, self.variables)

    def block(self) -> None:
        jax.block_until_ready([v.value for v in self.variables])


def compared(title: str, make: Callable[[Any], Any], budget: float, steps: int) -> None:
    runs = {name: make(cls(1e-3)) for name, cls in FACES.items()}
    again = {LIMIT: runs[THEIRS], OURS: runs[OURS], THEIRS: runs[THEIRS]}
    with progress(title) as tell:
        times = interleaved(again, budget, 200, tell, np.random.default_rng(0))
    print(f"{title}, ms a step: the median (quartiles) over {len(times.steady)} rounds")
    for name in (THEIRS, OURS):
        print(f"  {name:24}{_shown(times.spread(name), 1e3 / steps)}")
    for name, label in ((OURS, "ours / Keras's"), (LIMIT, "Keras's / itself")):
        ratio = times.ratio(name, THEIRS)
        assert ratio is not None
        print(f"  {label:24}{_shown(ratio, 1)}")


def _shown(spread: Spread, scale: float) -> str:
    return f"{spread.median * scale:.3g} ({spread.q1 * scale:.3g} to {spread.q3 * scale:.3g})"


def parser() -> Parser:
    parser = Parser("benchmarks.keras_loop", __doc__)
    parser.add_argument("--seconds", type=positive, default=15.0, help="for each comparison (default: 15)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    seconds = parser().parse_args(argv).seconds
    theirs, mine = (Fit(cls(1e-3)).losses() for cls in FACES.values())
    gap = max(abs(a / b - 1) for a, b in zip(mine, theirs, strict=True))
    print(f"losses of {STEPS} steps of the perceptron agree to {gap:.1e} (relative)")
    compared("fit, a perceptron 64-256-256-10", Fit, seconds, STEPS)
    compared("eager apply, 100 variables of 64 x 64", Eager, seconds, 1)


if __name__ == "__main__":
    main()
