"""The counts that a run for a TPU has made, in a file: another run goes on after them, as all take hours."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from benchmarks.tpu import Cost
from benchmarks.tpu_steps import Counts

Found = Counts | str  # the counts of a case, or the sentence with which it is refused


class Done:
    """The counts of cases of one kind: a chip, alone or in a mesh.

    Args:
        path: the file; None: nothing is kept.
        kind: what the cases have in common. Another version of JAX is another kind.
    """

    def __init__(self, path: Path | None, kind: str) -> None:
        self.path, self.kind = path, f"{kind}, jax {jax.__version__}"

    def get(self, name: str, make: Callable[[], Found]) -> Found:
        """Return the counts of a case, from the file or else from `make()`, which are then written to it."""
        everything = self._read()
        cases = everything.setdefault(self.kind, {})
        if name not in cases:
            cases[name] = make()
            if self.path is not None:
                self.path.write_text(json.dumps(everything, indent=1) + "\n")
        return _counts(cases[name])

    def _read(self) -> dict[str, Any]:
        return json.loads(self.path.read_text()) if self.path is not None and self.path.exists() else {}


def _counts(x: Any) -> Found:
    if isinstance(x, str | Counts):
        return x
    cost, *rest = x
    return Counts(Cost(*cost), *rest)
