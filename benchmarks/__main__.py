"""The command: `python -m benchmarks`."""

import argparse
import importlib.metadata
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from benchmarks import limits, ours, report
from benchmarks.measure import Effort, measure
from benchmarks.parity.peer import default_promotion
from benchmarks.peers import PEERS
from benchmarks.problem import DTYPES, RULES
from benchmarks.records import Record, Row
from benchmarks.runs import Implementation, Wish
from benchmarks.ways import candidates
from benchmarks.workloads import WORKLOADS
from command import Parser, count, output_file, pattern, positive, progress
from jaxopt_keras.language.option_values import FORMATS

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "static" / "speed.png"
QUICK = {"scale": 0.01, "seconds": 0.3, "rounds": 5, "memory": False}
QUICK_WORKLOADS, QUICK_PEERS = ["lenet5", "embedding"], ["optax"]
WIDTH = 190  # of the output, if it is not a terminal


def threads(text: str) -> int:
    """A number of threads: from 1 to the number of cores."""
    if (chosen := count(text)) > available_cores():
        raise argparse.ArgumentTypeError(f"must be from 1 to {available_cores()}, the cores here. Received: {text}")
    return chosen


def parser() -> Parser:
    parser = Parser(
        "benchmarks",
        "Times the step of an optimizer, and compares it with other libraries and the machine's limit.\n"
        "Every result is first compared with float64; an implementation that differs is not timed.",
        epilog="workloads: " + "; ".join(f"{w.name}: {w.about}" for w in WORKLOADS.values()),
    )
    add = parser.add_argument
    add("--device", choices=["cpu", "gpu", "tpu"], help="where to run (default: JAX's first device)")
    add("--workload", nargs="+", choices=list(WORKLOADS), metavar="NAME", help="default: all")
    add(
        "--optimizer", nargs="+", choices=list(RULES), metavar="NAME",
        help=f"default: that of the workload, mostly adamw; choices: {', '.join(RULES)}",
    )  # fmt: skip
    add(
        "--peer", nargs="*", choices=list(PEERS), metavar="NAME",
        help=f"libraries to compare with; default: all installed ones of {', '.join(PEERS)}; without a name: none",
    )  # fmt: skip
    add("--dtype", nargs="+", choices=list(DTYPES), default=["float32"], metavar="NAME", help="of the parameters")
    add(
        "--storage", nargs="+", choices=FORMATS, default=["float32"], metavar="NAME",
        help=f"formats of the slots, of {', '.join(FORMATS)}; includes other libraries with such slots",
    )  # fmt: skip
    add("--only", type=pattern, metavar="REGEX", help="only the rows whose name matches, and `step`")
    add("--scale", type=positive, metavar="X", help="multiply every side of at least 16 by X (default: 1)")
    add("--seconds", type=positive, metavar="S", help=f"of timing, for each table (default: {Effort().seconds:g})")
    add("--rounds", type=count, metavar="N", help=f"at most so many rounds (default: {Effort().rounds})")
    add(
        "--threads",
        type=threads,
        metavar="N",
        default=available_cores(),
        help="for torch and the stream (default: all cores)",
    )
    add("--no-memory", dest="memory", action="store_false", default=None, help="do not measure peak memory")
    add("--quick", action="store_true", help="a smoke run: few workloads, tiny arrays, five rounds")
    add("--json", type=output_file, metavar="FILE", help="write the results, after each table")
    add("--plot", type=output_file, metavar="FILE", help="write a picture: how near each one is to the limit (PNG)")
    add(
        "--readme",
        action="store_true",
        help="only write the tables of README.md and benchmarks/README.md from benchmarks/results",
    )
    return parser


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    chosen = parser().parse_args(arguments)
    if chosen.workload is None:
        chosen.workload = QUICK_WORKLOADS if chosen.quick else list(WORKLOADS)
    if chosen.peer is None:
        chosen.peer = QUICK_PEERS if chosen.quick else list(PEERS)
    chosen.device = find_device(chosen.device)
    return chosen


def find_device(name: str | None) -> Any:
    try:
        return jax.devices(name)[0] if name else jax.devices()[0]
    except RuntimeError:
        parser().error(
            f"argument --device: JAX sees no {name} here, but {', '.join(map(str, jax.devices()))}. For a GPU, install "
            'its JAX: pip install "jax[cuda13]"'
        )


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def effort_of(chosen: argparse.Namespace) -> Effort:
    asked = {name: getattr(chosen, name) for name in ("scale", "seconds", "rounds", "memory")}
    values = (QUICK if chosen.quick else {}) | {name: x for name, x in asked.items() if x is not None}
    return Effort(**values, room=room(chosen.device))


def room(device: Any) -> int:
    """Return the bytes of memory that the benchmarks may use at once."""
    if stats := device.platform != "cpu" and device.memory_stats():
        return int(0.8 * (stats["bytes_limit"] - stats["bytes_in_use"]))
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = 8 << 30
    return int(0.7 * free)


def machine() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {available_cores()} cores"


def versions(libraries: Sequence[str]) -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for name in ["jaxopt_keras", "jax", "jaxlib", *libraries]:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def command(arguments: Sequence[str]) -> str:
    """Return the command without its output files, which do not affect the numbers."""
    files = {i + j for i, argument in enumerate(arguments) for j in (0, 1) if argument in ("--json", "--plot")}
    return shlex.join(["python", "-m", "benchmarks", *(a for i, a in enumerate(arguments) if i not in files)])


def wishes(chosen: argparse.Namespace, effort: Effort) -> Iterator[tuple[Wish, str]]:
    """Yield each measurement to make, and the name of its optimizer."""
    variants = ("optax", "keras") if "keras" in chosen.peer else ("optax",)
    for workload in (WORKLOADS[name].scaled(effort.scale) for name in chosen.workload):
        for optimizer in chosen.optimizer or [workload.optimizer]:
            for dtype in chosen.dtype:
                storages = tuple(dict.fromkeys(["float32", *chosen.storage]))
                yield (
                    Wish(workload, RULES[optimizer], dtype, storages, chosen.device.platform, chosen.threads, variants),
                    optimizer,
                )


def wanted(found: list[Implementation], only: re.Pattern[str] | None) -> list[Implementation]:
    """Select the rows that match `only`; the first of ours is always included."""
    return [each for i, each in enumerate(found) if only is None or i == 0 or only.search(each.name)]


def write_readme(console: Console) -> int:
    """Write the tables of the README and of `benchmarks/README.md`, and the README's picture."""
    from benchmarks import roofline  # matplotlib takes a second to import

    found = report.results()
    roofline.draw(report.pictured(found), PICTURE)
    for page, table in ((ROOT / "README.md", report.summary(found)), (report.PAGE, report.markdown(found))):
        page.write_text(report.placed(page.read_text(), table))
        console.print(f"{page} has the tables of {len(found)} files in {report.RESULTS}")
    return 0


def main(arguments: Sequence[str], console: Console | None = None) -> int:
    console = console or Console()
    if not console.is_terminal:
        console.width = WIDTH
    chosen = parsed(arguments)
    if chosen.readme:
        return write_readme(console)
    effort, libraries = effort_of(chosen), [ours.NAME, *chosen.peer]
    installed = [name for name in chosen.peer if PEERS[name].available(chosen.device.platform) is None]
    with jax.default_device(chosen.device), default_promotion():
        record = Record(
            command=command(arguments), date=time.strftime("%Y-%m-%d"),
            device=chosen.device.device_kind, machine=machine(), threads=chosen.threads,
            versions=versions(installed),
            copy_gb_per_s=limits.copy_bandwidth(max(1 << 16, int((1 << 26) * min(1.0, effort.scale))), chosen.threads),
        )  # fmt: skip
        console.print(f"{record.device}, {record.machine}; copy {record.copy_gb_per_s:.1f} GB/s; {record.versions}")
        for wish, optimizer in wishes(chosen, effort):
            found = wanted(candidates(wish, libraries), chosen.only)
            with progress(f"{wish.workload.name} {optimizer} {wish.dtype}", console=console) as tell:
                table = measure(wish, optimizer, found, effort, lambda what, part, tell=tell: tell(part, what))
            record.tables.append(table)
            console.print(report.grid(table), *report.notes(table), sep="\n")
            if chosen.json:
                chosen.json.write_text(record.json())
    if chosen.plot:
        from benchmarks import roofline  # as above

        roofline.draw(record, chosen.plot)
    return 1 if any(row.note and row.error is not None for row in ours_of(record)) else 0


def ours_of(record: Record) -> list[Row]:
    return [row for table in record.tables for row in table.rows if row.library == ours.NAME]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
