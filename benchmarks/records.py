"""Results of the benchmarks as plain values, and their conversion to JSON and back."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.timing import Spread

SCHEMA = 1


@dataclass
class Row:
    """One implementation on one workload. None: not measured."""

    name: str
    library: str
    variant: str
    storage: str
    note: str | None = None  # the reason why it was not timed
    error: float | None = None  # from float64, divided by the distance travelled
    bar: float | None = None
    ms: Spread | None = None
    cold_ms: float | None = None
    ns_per_parameter: float | None = None
    bytes: int | None = None  # the least that a step has to move
    gb_per_s: float | None = None
    share: Spread | None = None  # of the limit, in the same round
    first_call_s: float | None = None  # tracing, compilation and one step
    held: int | None = None  # bytes of parameters and state
    transient: int | None = None  # additional bytes during a step
    ratios: dict[str, Spread] = field(default_factory=dict)  # its time divided by another row's, in the same rounds


@dataclass
class Table:
    """One workload with one optimizer."""

    workload: str
    about: str
    optimizer: str
    dtype: str
    scale: float
    arrays: int
    parameters: int
    touched: int
    limit: str  # its name
    limit_ms: Spread
    limit_bytes: int | None
    unsteady: float  # the part of the rounds in which the machine changed its speed
    reference: str | None  # the row that was timed twice
    again: Spread | None  # the second time divided by the first
    rows: list[Row]

    def row(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.name == name), None)


@dataclass
class Record:
    """One run of the command."""

    command: str
    date: str
    device: str
    machine: str
    threads: int
    versions: dict[str, str]
    copy_gb_per_s: float
    tables: list[Table] = field(default_factory=list)
    schema: int = SCHEMA

    def json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"


def spread(x: Any) -> Spread | None:
    return None if x is None else Spread(**x)


def read(path: Path) -> Record:
    """Read a `Record` from the file `path`.

    Raises:
        ValueError: if the file is not a record.
    """
    try:
        raw = json.loads(path.read_text())
        if raw["schema"] != SCHEMA:
            raise ValueError(f"its schema is {raw['schema']}")
        tables = []
        for table in raw.pop("tables"):
            rows = [
                Row(**row | {"ms": spread(row["ms"]), "share": spread(row["share"])}
                    | {"ratios": {name: Spread(**x) for name, x in row["ratios"].items()}})
                for row in table.pop("rows")
            ]  # fmt: skip
            parts = {"limit_ms": Spread(**table["limit_ms"]), "again": spread(table["again"]), "rows": rows}
            tables.append(Table(**table | parts))
        return Record(**raw, tables=tables)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"`{path}` must be a file that `python -m benchmarks --json` wrote ({error})") from None
