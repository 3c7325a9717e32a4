"""Tables: on the terminal with rich, and in Markdown for the README, from the files in benchmarks/results."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from rich import box
from rich.table import Table as Grid
from rich.text import Text

from benchmarks import records
from benchmarks.records import Record, Row, Table
from benchmarks.timing import Spread

MARK = "<!-- bench -->"
RESULTS = Path(__file__).with_name("results")
PAGE = Path(__file__).with_name("README.md")
SHORT = ["/ optax", "/ torch", "/ keras, jitted", "packed / optax"]  # columns of the README
OURS = "jaxopt_keras"
# The implementations that have a column, if they were timed.
COLUMNS = ["optax", "optax, dense", "torch, fused", "torch, SparseAdam", "keras, jitted", "keras, eager"]


def quotient(x: Spread | None) -> str:
    """Format the median and the quartiles; only the median if it is far from 1."""
    if x is None:
        return "-"
    return f"{x.median:.2f} ({x.q1:.2f}-{x.q3:.2f})" if 0.1 < x.median < 10 else number(x.median, 2)


def number(x: float | None, digits: int = 3) -> str:
    if x is None:
        return "-"
    return f"{x:.{digits}g}" if abs(x) < 1000 else f"{x:,.0f}"


def per_cent(x: Spread | None) -> str:
    return "-" if x is None else f"{number(100 * x.median, 2)} %"


def mebibytes(x: int | None) -> str:
    return "-" if x is None else number(x / 2**20)


def columns_of(table: Table) -> list[str]:
    timed = {row.name for row in table.rows if row.ms}
    return [name for name in COLUMNS if name in timed]


def title(table: Table) -> str:
    scale = "" if table.scale == 1 else f", scale {table.scale:g}"
    return f"{table.about}: {table.optimizer}, {table.dtype}{scale}"


def facts(table: Table) -> str:
    """Return the caption of a table."""
    again = ""
    if table.again:
        again = f" The same again ({table.reference} against itself): {quotient(table.again)}."
    limit = f"{number(table.limit_ms.median)} ms"
    if table.limit_bytes:
        limit += f", {number(table.limit_bytes / table.limit_ms.median / 1e6)} GB/s"
    unsteady = f" Unsteady rounds: {100 * table.unsteady:.0f} %." if table.unsteady else ""
    return f"{table.arrays} arrays, {table.touched:,} parameters. Limit: {table.limit}, {limit}.{again}{unsteady}"


def grid(table: Table) -> Grid:
    """Format a table for the terminal."""
    against = columns_of(table)
    found = Grid(
        title=title(table), caption=facts(table), box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left"
    )
    found.add_column("", no_wrap=True)
    headings = [
        "ms",
        "cold ms",
        "ns/param",
        "GB/s",
        "of limit",
        *(f"/ {name}" for name in against),
        "first s",
        "peak MiB",
    ]
    for heading in [*headings, "error"]:
        found.add_column(heading, justify="right", overflow="fold")
    for row in table.rows:
        if row.ms is None:
            continue
        cells = [
            number(row.ms.median), number(row.cold_ms), number(row.ns_per_parameter), number(row.gb_per_s),
            per_cent(row.share), *(quotient(row.ratios.get(name)) if name != row.name else "1" for name in against),
            number(row.first_call_s, 2), mebibytes(None if row.held is None else row.held + (row.transient or 0)),
            "-" if row.error is None else f"{row.error:.0e}",
        ]  # fmt: skip
        found.add_row(row.name, *cells, style="bold" if row.library == OURS else "")
    return found


def notes(table: Table) -> list[Text]:
    """Return the implementations that were not timed, with the reasons."""
    return [Text(f"  {row.name}: {row.note}", style="yellow") for row in table.rows if row.note]


# ---------------------------------------------------------------------------------------------------------------------
# Markdown


def best(table: Table, names: Sequence[str]) -> Row | None:
    return next((row for name in names if (row := table.row(name)) and row.ms), None)


STEP = ["step", "step, lazy"]
PAIRS = {  # heading: the first of our rows, divided by the first of theirs
    "/ optax": (STEP, ["optax", "optax, dense"]),
    "/ torch": (STEP, ["torch, fused", "torch, SparseAdam", "torch, foreach"]),
    "/ keras, jitted": (STEP, ["keras, jitted"]),
    "/ keras, eager": (STEP, ["keras, eager"]),
    "apply_gradients / optax": (["apply_gradients", "apply_gradients, lazy"], ["optax", "optax, dense"]),
    "flat state / optax": (["step, flat state"], ["optax"]),
    "packed / optax": (["packed"], ["optax"]),
}


def cells(record: Record) -> list[list[str]]:
    """Return headings and a row for each table: the time of `Kernel.step`, and its ratio to each library's."""
    found = [["workload", "optimizer", "step, ms", "of limit", *PAIRS, "same again"]]
    for table in record.tables:
        row = best(table, STEP)
        if row is None or row.ms is None:
            continue
        ratios = []
        for ours, theirs in PAIRS.values():
            one, other = best(table, ours), best(table, theirs)
            ratios.append(quotient(one.ratios.get(other.name)) if one and other else "-")
        name = table.about if table.scale == 1 else f"{table.about}, scale {table.scale:g}"
        optimizer = table.optimizer if table.dtype == "float32" else f"{table.optimizer}, {table.dtype}"
        found.append([name, optimizer, number(row.ms.median), per_cent(row.share), *ratios, quotient(table.again)])
    return found


def lines(rows: list[list[str]]) -> list[str]:
    """Format rows as a table, without the columns in which no row has a number."""
    columns = [column for column in zip(*rows, strict=True) if any(cell != "-" for cell in column[1:])]
    heading, *others = ([*row] for row in zip(*columns, strict=True))
    return [f"| {' | '.join(row)} |" for row in (heading, ["---"] * len(heading), *others)]


def summary(found: Iterable[Record]) -> str:
    """Format the table of the README: AdamW on arrays of all sizes, without optimizers and details."""
    heading, *rows = (
        ["workload", *SHORT],
        *(
            [row[0], *(row[heading.index(name)] for name in SHORT)]
            for heading, *others in map(cells, found)
            for row in others
            if row[1] == "adamw" and row[heading.index("/ torch")] != "-"
        ),
    )
    return "\n".join(["", *lines([heading, *rows]), ""])


PICTURED = ["step", "apply_gradients", "packed", "optax", "torch, fused", "keras, jitted"]


def pictured(found: Sequence[Record]) -> Record:
    """Return a record with what the README's picture shows: AdamW on two models."""
    tables = {table.workload: table for record in found for table in record.tables if table.optimizer == "adamw"}
    chosen = [tables[name] for name in ("gpt2", "resnet50") if name in tables]
    rows = [[row for row in table.rows if row.name in PICTURED] for table in chosen]
    return replace(found[-1], tables=[replace(table, rows=own) for table, own in zip(chosen, rows, strict=True)])


def markdown(found: Iterable[Record]) -> str:
    """Format a section for each record."""
    parts = []
    for record in found:
        versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
        about = (
            f"{record.device}: {record.machine}, {record.threads} threads; a copy: {record.copy_gb_per_s:.0f} GB/s. "
            f"{versions}. {record.date}: `{record.command}`"
        )
        parts.append("\n".join([about, "", *lines(cells(record)), ""]))
    return "\n".join(parts)


def results(folder: Path = RESULTS) -> list[Record]:
    return [records.read(path) for path in sorted(folder.glob("*.json"))]


def placed(page: str, table: str) -> str:
    """Return `page` with `table` between its two marks.

    Raises:
        ValueError: if there are not two marks.
    """
    parts = page.split(MARK)
    if len(parts) != 3:
        raise ValueError(f"The page must have two lines {MARK}. Received: {len(parts) - 1}")
    return f"{parts[0]}{MARK}\n{table}{MARK}{parts[2]}"
