"""The report of a comparison, as a table."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from benchmarks.parity.comparison import Cell


class Report(NamedTuple):
    """The results of a comparison, and the command to repeat it."""

    command: str
    versions: dict[str, str]
    peers: list[str]
    rows: list[list[Cell]]  # one per optimizer, in the order of `peers`

    @property
    def cells(self) -> list[Cell]:
        return [cell for row in self.rows for cell in row]

    @property
    def passed(self) -> bool:
        """Whether no cell exceeds its bar, and at least one was compared."""
        return all(cell.passed for cell in self.cells) and any(cell.difference is not None for cell in self.cells)

    @property
    def about(self) -> str:
        return ", ".join(f"{name} {version}" for name, version in self.versions.items())

    def notes(self) -> list[str]:
        """The reasons for empty cells, and the cells that exceed their bar."""
        absent = dict.fromkeys(f"- {cell.peer}: {cell.reason}" for cell in self.cells if cell.reason)
        theirs = [f"- \\* {c.optimizer}: {distances(c)}." for c in self.cells if c.is_theirs]
        failures = [
            f"! {c.optimizer} and {c.peer}, seed {c.seed}: {c.difference:.1e} exceeds {c.bar:.0e}. {distances(c)}. "
            f"{c.settings}"
            for c in self.cells
            if not c.passed
        ]
        return [*absent, *theirs, *failures]

    def markdown(self) -> str:
        header = ["optimizer", *self.peers, "bar"]
        lines = [header, ["---"] * len(header)] + [texts(row) for row in self.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        notes = "\n".join(self.notes())
        return f"`{self.command}`\n\n{table}\n\n{self.about}.\n" + (f"\n{notes}\n" if notes else "")

    def interrupted(self, path: Path | None, optimizers: int) -> dict[str, list[Cell]]:
        """Return the rows by optimizer of a run of the same command and versions that wrote fewer `optimizers`."""
        text = path.read_text() if path is not None and path.exists() else ""
        saved = json.loads(text) if text.strip() else {}
        if (saved.get("command"), saved.get("versions")) != (self.command, self.versions):
            return {}
        rows: dict[str, list[Cell]] = {}
        for each in saved["cells"]:
            rows.setdefault(each["optimizer"], []).append(Cell(**each))
        return rows if len(rows) < optimizers else {}

    def json(self) -> str:
        cells = [asdict(cell) for cell in self.cells]
        return json.dumps({"command": self.command, "versions": self.versions, "cells": cells}, indent=2) + "\n"


def distances(cell: Cell) -> str:
    """Say whose rounding a difference is."""
    return f"from float64 ours {shown(cell.ours_to_float64)}, {cell.peer} {shown(cell.peer_to_float64)}"


def shown(x: float | None) -> str:
    return "unknown" if x is None else f"{x:.1e}"


def texts(row: Sequence[Cell]) -> list[str]:
    return [row[0].optimizer, *map(str, row), f"{row[0].bar:.0e}"]


def aligned(line: Sequence[str]) -> str:
    return f"{line[0]:<18}" + "".join(f"{text:>10}" for text in line[1:])
