"""Writers of rows of numbers: one line, a CSV table, TensorBoard events, and a plot."""

import csv as tables
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxopt_keras.history.measures import NORMS, RATE
from jaxopt_keras.language.optional import optional

Path = str | os.PathLike[str]
PANELS = {
    "Learning rate": RATE,
    "Norm of the gradient": "gradient_norm",
    "Update by weight, |Δw| / |w|": "update_ratio",
    "Skipped steps": "skipped",
}
LINEAR = ("Learning rate", "Skipped steps")
SHORT = {RATE: "rate", "gradient_norm": "|g|", "update_ratio": "|Δw|/|w|", "skipped": "skipped"}


def line(row: Mapping[str, float]) -> str:
    """One line with the step, the user's own numbers, and the main measures."""
    parts = [f"step {row['step']:.0f}"] if "step" in row else []
    parts += [f"{name} {x:.4g}" for name, x in row.items() if _is_own(name)]
    parts += [f"{short} {row[name]:.2g}" for name, short in SHORT.items() if name in row and row[name] != 0]
    return "  ".join(parts)


def csv(path: Path, names: Sequence[str], rows: Sequence[Mapping[str, float]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = tables.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def tensorboard(directory: Path, rows: Sequence[Mapping[str, float]], first: int) -> None:
    """Writes `rows`. Without a step, rows are numbered from `first`."""
    library = optional("tensorboardX", "`tensorboard`", "tensorboard")
    # Two files that are made in the same second need different names.
    with library.SummaryWriter(str(directory), filename_suffix=f".{first}") as writer:
        for i, row in enumerate(rows, first):
            for name, x in row.items():
                undefined = name.startswith("update_ratio") and math.isnan(x)  # all weights are zero
                if name != "step" and not undefined:
                    writer.add_scalar(name, x, int(row.get("step", i)))


def plot(history: Any, path: Path | None) -> Any:
    """Plots the columns of a `History` in panels; returns matplotlib's `Figure`."""
    matplotlib = optional("matplotlib.figure", "`plot`", "plots")
    if not len(history):
        raise ValueError("There is nothing to plot: the history has no rows. `append` rows first.")
    steps = history["step"] if "step" in history.names else np.arange(len(history))
    named = {title: [n for n in history.names if n.split("/")[0] == measure] for title, measure in PANELS.items()}
    own = {"": [n for n in history.names if _is_own(n)]}  # the title lists the names
    panels = {title: names for title, names in (own | named).items() if names}
    if not panels:
        raise ValueError(f"There is nothing to plot among the columns {history.names}")
    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = matplotlib.Figure(figsize=(5.5 * columns, 3.2 * lines), layout="constrained")
    for i, (title, names) in enumerate(panels.items(), 1):
        _panel(figure.add_subplot(lines, columns, i), title, names, steps, history)
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure


def _panel(ax: Any, title: str, names: list[str], steps: np.ndarray, history: Any) -> None:
    values = [history[name] for name in names]
    for name, column in zip(names, values, strict=True):
        present = ~np.isnan(column)
        whole, _, group = name.partition("/")
        behind = {"color": "0.75", "linewidth": 4} if any(n.startswith(f"{name}/") for n in names) else {}
        marker = "." if present.sum() < 2 else None
        ax.plot(steps[present], column[present], label=group or whole.replace("_", " "), marker=marker, **behind)
    positive = np.concatenate(values)
    positive = positive[np.isfinite(positive) & (positive != 0)]
    if title not in LINEAR and positive.size and (positive > 0).all():
        ax.set_yscale("log")
    ax.set(title=title or ", ".join(names[:3]), xlabel="step")
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small")


def _is_own(name: str) -> bool:
    """Whether a column contains the user's own numbers."""
    return name.split("/")[0] not in (*NORMS, RATE, "step", "skipped")
