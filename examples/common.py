"""Shared code of the examples: command-line options, figures, and scikit-learn's handwritten digits."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

import command

OUT = Path(__file__).parent / "out"


def parser(module: str, doc: str | None) -> command.Parser:
    """Return a parser of the options that every example has; `doc` is the example's docstring."""
    result = command.Parser(module, doc)
    result.add_argument(
        "--out", type=command.output_folder, default=OUT, metavar="DIR",
        help="folder of the plots (default: examples/out)",
    )  # fmt: skip
    result.add_argument("--quick", action="store_true", help="run only a few steps, to check that the example works")
    return result


def heading(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}")


def save(figure: Figure, out: Path, name: str) -> Path:
    """Write a figure to `out/name`. The figure is not pyplot's, so it need not be closed."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / name
    figure.savefig(path, dpi=120)
    print(f"Saved {path}")
    return path


class Digits(NamedTuple):
    """Images with values in [0, 1] and their labels, as training and test data."""

    x_train: NDArray[np.float32]
    y_train: NDArray[np.int32]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int32]


def digits() -> Digits:
    """Load the 1797 scans of 8 x 8 pixels that scikit-learn includes. A fixed fifth of them is the test data."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = (np.reshape(images, (-1, 8, 8)) / 16).astype(np.float32)
    y = np.asarray(labels, np.int32)
    test, train = np.split(np.random.default_rng(0).permutation(len(x)), [len(x) // 5])
    return Digits(x[train], y[train], x[test], y[test])


def batches(
    x: NDArray[np.float32], y: NDArray[np.int32], size: int, rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int32]]]:
    """Yield one epoch in random order. An incomplete batch is dropped, so that all batches have the same shape."""
    order = rng.permutation(len(x))
    for start in range(0, len(x) - size + 1, size):
        chosen = order[start : start + size]
        yield x[chosen], y[chosen]
