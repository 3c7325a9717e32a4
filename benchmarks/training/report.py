"""The results as a table, a picture and JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.training.search import Result


def table(results: Sequence[Result], shown: Sequence[str] | None = None) -> str:
    """Return a row for each optimizer: how many tasks it solves, and the steps and the window of those `shown`."""
    tasks, names = (list(dict.fromkeys(x)) for x in zip(*((r.task, r.optimizer) for r in results), strict=True))
    found = {(r.task, r.optimizer): r for r in results}
    columns = [task for task in tasks if shown is None or task in shown]
    rows = [["optimizer", f"solved of {len(tasks)}", *columns], ["---"] * (len(columns) + 2)]
    for name in names:
        solved = sum(r.best is not None for r in results if r.optimizer == name)
        rows.append([name, str(solved), *(entry(found.get((task, name))) for task in columns)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def entry(result: Result | None) -> str:
    if result is None:
        return "-"
    return "no" if result.best is None else f"{result.best} ({result.window:.0f}x)"


def written(command: str, versions: dict[str, str], settings: dict[str, Any], results: Sequence[Result]) -> str:
    about = {"command": command, "versions": versions, "settings": settings}
    rows = ",\n".join(json.dumps(asdict(r)) for r in results)  # one in each line
    return f'{json.dumps(about)[:-1]}, "results": [\n{rows}\n]}}\n'


def kept(path: Path | None, versions: dict[str, str], settings: dict[str, Any]) -> list[Result]:
    """Return the results of an earlier run with the same versions and settings, which is continued."""
    if path is None or not path.exists() or not path.read_text().strip():
        return []
    saved = json.loads(path.read_text())
    same = saved.get("versions") == versions and saved.get("settings") == settings
    return [Result(**each) for each in saved["results"]] if same else []


def draw(results: Sequence[Result], path: Path) -> None:
    """Draw how many times the steps of the best optimizer each one needs; white: not solved."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    tasks, names = (list(dict.fromkeys(x)) for x in zip(*((r.task, r.optimizer) for r in results), strict=True))
    grid = np.full((len(tasks), len(names)), np.nan)
    for r in results:
        grid[tasks.index(r.task), names.index(r.optimizer)] = np.nan if r.best is None else r.best
    least = np.array([np.nanmin(row) if np.isfinite(row).any() else np.nan for row in grid])
    figure, axes = plt.subplots(figsize=(2 + 0.4 * len(names), 1.5 + 0.3 * len(tasks)), layout="constrained")
    drawn = axes.imshow(np.log2(grid / least[:, None]), cmap="viridis_r", vmin=0, vmax=5, aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(tasks)), tasks)
    bar = figure.colorbar(drawn, ax=axes, ticks=range(6))
    bar.set_ticklabels([f"{2**i}" for i in range(6)])
    bar.set_label("steps to the target / those of the best")
    figure.savefig(path, dpi=120)
    plt.close(figure)
