"""What the examples share: their command line, their figures, and scikit-learn's handwritten digits."""

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
    """The options that every example has; `doc` is the example's docstring."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="where the plots go (default: examples/out)")
    made.add_argument("--quick", action="store_true", help="a few steps only, to see that it runs")
    return made


def heading(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}")


@contextlib.contextmanager
def progress(title: str, steps: int) -> Iterator[Callable[[Callable[[], str]], None]]:
    """A bar on a terminal, and lines now and then elsewhere: call the result after each step, with what tells of it.

    What tells is called a few times a second only.
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
        task, told, done = bar.add_task("", total=steps), 0.0, 0

        def advance(tell: Callable[[], str]) -> None:
            nonlocal told, done
            done += 1
            now = time.monotonic()
            if now - told > (0.2 if console.is_terminal else 10) or done == steps:
                told = now
                bar.update(task, completed=done, description=tell())
                if not console.is_terminal:
                    print(f"{title}: {tell()}")

        yield advance


def save(figure: Figure, out: Path, name: str) -> Path:
    """Writes a figure as `out/name`. Figures made without pyplot need no window, and no closing."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / name
    figure.savefig(path, dpi=120)
    print(f"Saved {path}")
    return path


class Digits(NamedTuple):
    """Pictures in [0, 1] and the digits that they show, in a part to train on and a part to test with."""

    x_train: NDArray[np.float32]
    y_train: NDArray[np.int32]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int32]


def digits() -> Digits:
    """1797 scans of 8 x 8 pixels, which scikit-learn carries with it: a fifth of them to test with, always the same."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = (np.reshape(images, (-1, 8, 8)) / 16).astype(np.float32)
    y = np.asarray(labels, np.int32)
    test, train = np.split(np.random.default_rng(0).permutation(len(x)), [len(x) // 5])
    return Digits(x[train], y[train], x[test], y[test])


def batches(
    x: NDArray[np.float32], y: NDArray[np.int32], size: int, rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int32]]]:
    """One epoch in random order. What does not fill a batch is left for another epoch: one shape, one compilation."""
    order = rng.permutation(len(x))
    for start in range(0, len(x) - size + 1, size):
        chosen = order[start : start + size]
        yield x[chosen], y[chosen]
