"""The command `python -m benchmarks.parity`."""

import argparse
import importlib
import importlib.metadata
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax

from benchmarks.parity.comparison import compare
from benchmarks.parity.keras import Keras
from benchmarks.parity.optax import Optax
from benchmarks.parity.oracle import Oracle
from benchmarks.parity.peer import RULES, Absent, Peer
from benchmarks.parity.report import Report, aligned, texts
from benchmarks.parity.torch import Torch

MARK = "<!-- parity -->"
PEERS: dict[str, Callable[[], Peer]] = {"keras": Keras, "optax": Optax, "torch": Torch, "oracle": Oracle}


def make_peer(name: str) -> Peer | Absent:
    try:
        return PEERS[name]()
    except Absent as absent:
        return absent


def versions(peers: Mapping[str, Peer | Absent]) -> dict[str, str]:
    try:
        own = importlib.metadata.version("jaxopt_keras")
    except importlib.metadata.PackageNotFoundError:
        own = "(not installed)"
    ours = {"jaxopt_keras": own, "Python": platform.python_version(), "jax": jax.__version__}
    return ours | {name: peer.version for name, peer in peers.items() if not isinstance(peer, Absent)}


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, str]:
    """Return the values of the arguments, and the command line without the files, which do not change the table."""
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("--json", type=Path, metavar="FILE", help="write all numbers, with the worst cases' settings")
    files.add_argument("--markdown", type=Path, metavar="FILE", help=f"write the table, between lines {MARK} if any")
    command = shlex.join(["python", "-m", "benchmarks.parity", *files.parse_known_args(arguments)[1]])
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.parity",
        description="Compares every optimizer with Keras, optax, torch and float64, and prints the greatest "
        "differences, relative to the distance travelled. Exits with 1 if one exceeds its bar.",
        parents=[files],
        allow_abbrev=False,
    )
    names = list(RULES)
    parser.add_argument("--optimizer", nargs="+", type=str.lower, choices=names, default=names, metavar="NAME")
    parser.add_argument("--peer", nargs="+", choices=list(PEERS), default=list(PEERS), metavar="NAME")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=5, help="how many random cases for each optimizer and peer")
    return parser.parse_args(arguments), command


def page_with(table: str, path: Path) -> str:
    """The new text of `path`: the existing page with the table between its marks, or the table alone."""
    before, *rest = path.read_text().split(MARK) if path.exists() else [""]
    return f"{before}{MARK}\n{table}{MARK}{rest[1]}" if len(rest) == 2 else table


def main(arguments: Sequence[str]) -> int:
    chosen, command = parse(arguments)
    peers = {name: make_peer(name) for name in chosen.peer}
    report = Report(command, versions(peers), list(peers), [])
    print(f"{report.command}\n{report.about}\n\n{aligned(['optimizer', *peers, 'bar'])}")
    for name in chosen.optimizer:
        row = [compare(RULES[name], n, peer, range(chosen.seeds), chosen.steps) for n, peer in peers.items()]
        report.rows.append(row)
        print(aligned(texts(row)), flush=True)
        jax.clear_caches()  # hundreds of programs, which are never used again
    print("", *report.notes(), "every difference is within its bar" if report.passed else "FAILED", sep="\n")
    if chosen.json:
        chosen.json.write_text(report.json())
    if chosen.markdown:
        chosen.markdown.write_text(page_with(report.markdown(), chosen.markdown))
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
