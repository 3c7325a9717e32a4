"""The picture: the share of the machine's limit that each implementation reaches, for each workload."""

import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.records import Record, Row, Table
from benchmarks.report import OURS

COLOURS = {
    OURS: "#0b6e4f", "optax": "#c8553d", "keras": "#8e6bbf", "torch": "#e0a100",
    "flashoptim": "#2f7fc1", "bitsandbytes": "#5c6b73", "torchao": "#b5179e",
}  # fmt: skip
OTHER = "#5c6b73"
PER_ROW = 3


def draw(record: Record, path: Path) -> None:
    """Write a PNG: a panel for each table, a bar for each row, the limit as a line."""
    tables = [table for table in record.tables if any(row.ms for row in table.rows)]
    if not tables:
        return
    columns = min(PER_ROW, len(tables))
    rows = math.ceil(len(tables) / columns)
    tallest = max(sum(row.ms is not None for row in table.rows) for table in tables)
    figure = Figure(figsize=(6.4 * columns, rows * (1.1 + 0.27 * tallest) + 1.0), dpi=140, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, table in zip(axes, tables, strict=False):
        panel(ax, table)
    for ax in axes[len(tables) :]:
        ax.remove()
    versions = ", ".join(f"{k} {v}" for k, v in record.versions.items() if k not in ("Python", "jaxlib"))
    lines = [
        "Share of the machine's limit that a step reaches: longer is better",
        f"{record.device}: {record.machine}; {record.threads} threads; copy {record.copy_gb_per_s:.0f} GB/s",
        f"{versions}; {record.date}",
    ]
    figure.suptitle("\n".join(lines), fontsize=8, x=0.01, ha="left")
    figure.savefig(path)


def panel(ax: Any, table: Table) -> None:
    shares = {row.name: row.share for row in table.rows if row.ms and row.share}
    rows = sorted((row for row in table.rows if row.name in shares), key=lambda row: shares[row.name].median)
    low = min([share.q1 for share in shares.values()] or [0.1])
    left = 10 ** math.floor(math.log10(max(low, 1e-5)) - 0.05)
    for i, row in enumerate(rows):
        bar(ax, i, row, left)
    ax.set_xscale("log")
    ax.set_xlim(left, 1.5)
    ax.xaxis.set_major_formatter(lambda x, _: f"{100 * x:g} %")
    ax.xaxis.set_minor_formatter("")
    ax.axvline(1, color="black", linewidth=1.2)
    ax.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=7)
    for label, row in zip(ax.get_yticklabels(), rows, strict=True):
        label.set_color(COLOURS.get(row.library, OTHER))
    scale = "" if table.scale == 1 else f", scale {table.scale:g}"
    ax.set_title(f"{table.about}{scale}\n{table.optimizer}, {table.dtype}", fontsize=8, loc="left")
    ax.set_xlabel(f"of the limit: {table.limit}", fontsize=7)
    ax.tick_params(axis="x", labelsize=7)
    ax.spines[["top", "right"]].set_visible(False)


def bar(ax: Any, i: int, row: Row, left: float) -> None:
    assert row.ms and row.share
    share, colour = row.share, COLOURS.get(row.library, OTHER)
    ax.barh(i, share.median - left, left=left, height=0.7, color=colour, alpha=0.85)
    ax.plot([share.q1, share.q3], [i, i], color="black", linewidth=1)
    speed = f"   {row.gb_per_s:.3g} GB/s" if row.gb_per_s else ""
    where = ax.get_yaxis_transform()  # x is a fraction of the panel's width: the text is to the right of it
    ax.text(1.02, i, f"{row.ms.median:.3g} ms{speed}", transform=where, va="center", fontsize=6.5)
