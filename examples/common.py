"""Shared code of the examples: command-line options, figures, and scikit-learn's handwritten digits."""

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

OUT = Path(__file__).parent / "out"


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser of the options that every example has; `doc` is the example's docstring."""
    result = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument(
        "--out", type=Path, default=OUT, metavar="DIR", help="folder of the plots (default: examples/out)"
    )
    result.add_argument("--quick", action="store_true", help="run only a few steps, to check that the example works")
    return result


def heading(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}")


@contextlib.contextmanager
def progress(title: str, steps: int) -> Iterator[Callable[[Callable[[], str]], None]]:
    """Show a progress bar on a terminal, or print lines elsewhere.

    Call the function that this yields after each step, with a function that returns a description of the step. The
    description is computed only a few times a second.
    """
    console = Console()
    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task, last_shown, done = bar.add_task("", total=steps), 0.0, 0

        def advance(describe: Callable[[], str]) -> None:
            nonlocal last_shown, done
            done += 1
            now = time.monotonic()
            if now - last_shown > (0.2 if console.is_terminal else 10) or done == steps:
                last_shown = now
                bar.update(task, completed=done, description=describe())
                if not console.is_terminal:
                    print(f"{title}: {describe()}")

        yield advance


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
