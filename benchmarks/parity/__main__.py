"""The command `python -m benchmarks.parity`."""

import importlib
import importlib.metadata
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence

import jax

from benchmarks.parity.authors import Authors
from benchmarks.parity.comparison import compare
from benchmarks.parity.keras import Keras
from benchmarks.parity.optax import Optax
from benchmarks.parity.oracle import Oracle
from benchmarks.parity.peer import RULES, Absent, Peer
from benchmarks.parity.report import Report, aligned, texts
from benchmarks.parity.torch import Torch
from command import Parser, count, output_file, page_with, place, progress

MARK = "<!-- parity -->"
PEERS: dict[str, Callable[[], Peer]] = {
    "keras": Keras,
    "optax": Optax,
    "torch": Torch,
    "authors": Authors,
    "oracle": Oracle,
}


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


def parser() -> Parser:
    parser = Parser(
        "benchmarks.parity",
        "Compares every optimizer with Keras, optax, torch and float64, and prints the greatest differences, relative\n"
        "to the distance travelled. Exits with 1 if one exceeds its bar.",
    )
    names, add = list(RULES), parser.add_argument
    add("--optimizer", nargs="+", type=str.lower, choices=names, default=names, metavar="NAME", help="default: all")
    add("--peer", nargs="+", choices=list(PEERS), default=list(PEERS), metavar="NAME", help=f"of {', '.join(PEERS)}")
    add("--steps", type=count, default=60, metavar="N", help="of each run (default: 60)")
    add("--seeds", type=count, default=5, metavar="N", help="random cases for each optimizer and peer (default: 5)")
    add("--json", type=output_file, metavar="FILE",
        help="write all numbers, with the worst cases' settings; an interrupted run goes on from them")  # fmt: skip
    add("--markdown", type=page_with(MARK), metavar="FILE", help=f"write the table, between two lines {MARK} if any")
    return parser


def command_line(arguments: Sequence[str]) -> str:
    """Return the command without the files, which do not change the table."""
    files = {i + j for i, each in enumerate(arguments) for j in (0, 1) if each in ("--json", "--markdown")}
    return shlex.join(["python", "-m", "benchmarks.parity", *(a for i, a in enumerate(arguments) if i not in files)])


def main(arguments: Sequence[str]) -> int:
    chosen = parser().parse_args(arguments)
    peers = {name: make_peer(name) for name in chosen.peer}
    report = Report(command_line(arguments), versions(peers), list(peers), [])
    print(f"{report.command}\n{report.about}\n\n{aligned(['optimizer', *peers, 'bar'])}")
    done = report.interrupted(chosen.json, len(chosen.optimizer))
    for name in chosen.optimizer:
        row = done.get(RULES[name].__name__, [])
        with progress(name, len(peers)) as tell:
            for i, (n, peer) in enumerate([*peers.items()][len(row) :]):
                tell(i, n)
                row.append(compare(RULES[name], n, peer, range(chosen.seeds), chosen.steps))
        report.rows.append(row)
        print(aligned(texts(row)), flush=True)
        jax.clear_caches()  # hundreds of programs, which are never used again
        if chosen.json:
            chosen.json.write_text(report.json())
    print("", *report.notes(), "every difference is within its bar" if report.passed else "FAILED", sep="\n")
    if chosen.markdown:
        place(chosen.markdown, MARK, report.markdown())
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
