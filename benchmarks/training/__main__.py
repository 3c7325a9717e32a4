"""The command `python -m benchmarks.training`."""

import importlib.metadata
import platform
import shlex
import sys
from collections.abc import Sequence

import jax

from benchmarks import training
from benchmarks.training import claims
from benchmarks.training.functions import TASKS
from benchmarks.training.models import MODELS
from benchmarks.training.optimizers import OPTIMIZERS
from benchmarks.training.report import draw, kept, table, written
from benchmarks.training.search import search
from benchmarks.training.task import Task
from command import Parser, count, output_file, page_with, place, positive, progress

MARK = "<!-- training -->"
FORMULAS = {task.name.replace(" ", "-"): task for task in TASKS}
NAMES = [*FORMULAS, *MODELS]


def task_of(name: str) -> Task:
    return FORMULAS[name] if name in FORMULAS else MODELS[name]()


def versions() -> dict[str, str]:
    installed = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy")}
    return {"Python": platform.python_version()} | installed


def parser() -> Parser:
    parser = Parser("benchmarks.training", training.__doc__)
    add, optimizers = parser.add_argument, list(OPTIMIZERS)
    add("--optimizer", nargs="+", type=str.lower, choices=optimizers, default=optimizers, metavar="NAME",
        help="default: all")  # fmt: skip
    add("--task", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    add("--rates", type=count, default=9, metavar="N", help="rates, two in each factor of ten (default: 9)")
    add("--part", type=positive, default=1.0, metavar="X", help="part of each task's steps (default: 1)")
    add("--json", type=output_file, metavar="FILE",
        help="write all numbers after each optimizer; an interrupted run goes on from them")  # fmt: skip
    add("--picture", type=output_file, metavar="FILE", help="draw the table")
    add("--markdown", type=page_with(MARK), metavar="FILE", help=f"write the table, between two lines {MARK} if any")
    return parser


def main(arguments: Sequence[str]) -> int:
    chosen = parser().parse_args(arguments)
    command, about = shlex.join(["python", "-m", "benchmarks.training", *arguments]), versions()
    settings = {"rates": chosen.rates, "part": chosen.part}
    done = {(r.optimizer, r.task): r for r in kept(chosen.json, about, settings)}
    tasks = [task_of(name) for name in chosen.task]
    todo = [(name, task) for name in chosen.optimizer for task in tasks]
    with progress("training", len(todo)) as tell:
        for i, (name, task) in enumerate(todo):
            tell(i, f"{name}: {task.name}")
            if (name, task.name) not in done:
                done[name, task.name] = search(name, task, chosen.rates, chosen.part)
                if chosen.json:
                    chosen.json.write_text(written(command, about, settings, list(done.values())))
            if task is tasks[-1]:
                jax.clear_caches()  # programs that are never used again
    results = [done[name, task.name] for name, task in todo]
    versions_line = ", ".join(f"{name} {version}" for name, version in about.items())
    print(table(results))
    short = [f"`{command}`", "", table(results, list(MODELS)), "", f"{versions_line}."]
    text = "\n".join([*short, "", claims.table(done)]) + "\n"
    print(text)
    if chosen.markdown:
        place(chosen.markdown, MARK, text)
    if chosen.picture:
        draw(results, chosen.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
