"""The command: `python -m benchmarks.collections FOLDER`.

Each optimizer class of a folder makes 40 steps on three variables, in a process of its own: with its own Keras on
TensorFlow, and with this library after a change of imports. A class that crashes or hangs stops nothing.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.collections.classes import Found, classes_in
from command import Parser, count, input_folder, output_file, output_folder, positive, progress, text

PROGRAM = Path(__file__).parent / "program.py"
LIMIT = 1e-4  # greatest difference of a variable, relative to the greatest element of the three and to 1
AMPLIFIED = 10  # an unstable class may differ by this factor more than its own Keras does from itself
VERDICTS = {
    "agrees": "the same variables after 1, 10, 20, 30 and 40 steps",
    "refused": "an error of this library",
    "fails": "another error",
    "unstable": "differs, but no more than with its own Keras if gradients change in the last places",
    "differs": "other variables, without an error",
    "own fails": "does not run with its own Keras",
}


def parser() -> Parser:
    parser = Parser("benchmarks.collections", __doc__)
    add = parser.add_argument
    add("folder", type=input_folder, help="a folder with Python files, such as a clone's folder of optimizers")
    add("--only", type=text, metavar="NAME", default="", help="part of the names of the classes to run")
    add("--json", type=output_file, metavar="FILE", help="write the results to this file")
    add(
        "--theirs", type=output_folder, metavar="DIR",
        help="keep the results with their own Keras in this folder; read them",
    )  # fmt: skip
    add("--seconds", type=positive, default=300.0, metavar="S", help="limit for each process (default: 300)")
    add("--jobs", type=count, default=2, metavar="N", help="processes at a time (default: 2)")
    return parser


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    chosen = parser().parse_args(arguments)
    chosen.found = [x for x in classes_in(chosen.folder) if chosen.only.lower() in x.name.lower()]
    if not chosen.found:
        parser().error(f"argument folder: no file of {chosen.folder} has such an optimizer class")
    return chosen


def ran(found: Found, side: str, result: Path, seconds: float) -> dict[str, Any]:
    """Run one class in a process. Its arrays are in `result` then, if it has no error."""
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    environment |= {"TF_USE_LEGACY_KERAS": "1"} if found.legacy else {"KERAS_BACKEND": "tensorflow"}
    command = [sys.executable, str(PROGRAM), str(found.path.resolve()), found.name, side, str(result)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment)
    except subprocess.TimeoutExpired:
        return {"error": f"no end after {seconds:g} s", "where": ""}
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (json.JSONDecodeError, IndexError):
        return {"error": f"the process ended with {done.returncode}: {done.stderr[-300:]}", "where": ""}


def compared(found: Found, chosen: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Return the row of one class."""
    name = f"{found.path.stem}.{found.name}"
    row = {"file": found.path.name, "class": found.name}
    own, mine = ((chosen.theirs or scratch) / f"{name}.npz", scratch / f"{name}.ours.npz")
    kept = own.with_suffix(".json")
    theirs = json.loads(kept.read_text()) if kept.exists() else ran(found, "theirs", own, chosen.seconds)
    if not kept.exists():
        kept.write_text(json.dumps(theirs))
    if "error" in theirs:
        return row | {"verdict": "own fails", "reason": theirs["error"]}
    ours = ran(found, "ours", mine, chosen.seconds)
    if "error" in ours:
        verdict = "refused" if "/jaxopt_keras/" in ours["where"] else "fails"
        return row | {"verdict": verdict, "reason": ours["error"]}
    gap = difference(own, mine)
    verdict = "agrees" if gap <= LIMIT else "differs"
    if verdict == "differs":
        nudged = own.with_suffix(".nudged.npz")
        if "error" not in ran(found, "nudged", nudged, chosen.seconds) and gap <= AMPLIFIED * difference(own, nudged):
            verdict = "unstable"
    return row | {"verdict": verdict, "difference": gap, "how": ours["how"]}


def difference(own: Path, mine: Path) -> float:
    """Return the greatest difference, relative to the size of the variables. NaN and infinity agree with their like."""
    a, b = ([file[key] for key in file.files] for file in (np.load(own), np.load(mine)))
    gaps = []
    for x, y in zip(a, b, strict=True):
        x, y = x.astype(float), y.astype(float)
        finite = np.isfinite(x)
        if not np.array_equal(x[~finite], y[~finite], equal_nan=True):
            return float("inf")
        size = np.max(np.abs(x[finite]), initial=1.0)
        gaps.append(float(np.max(np.abs(x - y)[finite], initial=0.0) / size))
    return max(gaps)


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table("file", "class", "", "difference", "how", "reason")
    for row in rows:
        gap = f"{row['difference']:.0e}" if "difference" in row else ""
        reason = " ".join(row.get("reason", "").split())[:240]
        shown.add_row(row["file"], row["class"], row["verdict"], gap, row.get("how", ""), reason)
    return shown


def counts(rows: list[dict[str, Any]]) -> dict[str, int]:
    found = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in VERDICTS}
    compiled = sum(row.get("how") == "compiled" and row["verdict"] == "agrees" for row in rows)
    return {"classes": len(rows), "run with their own Keras": len(rows) - found["own fails"], **found} | {
        "of those that agree, compiled": compiled
    }


def versions() -> dict[str, str]:
    libraries = ("jax", "jaxlib", "keras", "tensorflow", "tf_keras")
    return {"Python": platform.python_version()} | {name: importlib.metadata.version(name) for name in libraries}


def main(argv: Sequence[str] | None = None) -> None:
    chosen, console = parsed(argv), Console(width=None if sys.stdout.isatty() else 190)
    if chosen.theirs:
        chosen.theirs.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(chosen.jobs) as pool:
        waiting = [pool.submit(compared, found, chosen, Path(scratch)) for found in chosen.found]
        with progress("classes", len(waiting), console) as tell:
            for done in as_completed(waiting):
                rows.append(done.result())
                tell(len(rows), rows[-1]["class"])
    rows.sort(key=lambda row: (row["verdict"], row["file"], row["class"]))
    console.print(table(rows))
    for name, number in counts(rows).items():
        console.print(f"{name}: {number}" + (f"  ({VERDICTS[name]})" if name in VERDICTS else ""), highlight=False)
    if chosen.json:
        about = {"date": datetime.date.today().isoformat(), "versions": versions(), "folder": chosen.folder.name}
        chosen.json.write_text(json.dumps(about | {"counts": counts(rows), "classes": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
