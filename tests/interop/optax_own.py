"""optax's own tests, as the installed package ships them, with our kernels in the place of optax's optimizers.

    python -m tests.interop.optax_own alias | optimization | sharding

runs a group twice, with optax's optimizers and with ours (`optax_swap`). What fails only with ours must be in
`DEVIATIONS`, and what is there must fail. docs/from_optax.md lists them.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Group(NamedTuple):
    """A module of tests, and a regular expression for the names of those that are run."""

    module: str
    only: str = ""


ALIAS = "optax._src.alias_test"
GROUPS = {
    "alias": Group(ALIAS, r"^test_(?!optimization )"),
    "optimization": Group(ALIAS, r"^test_optimization "),  # 10,000 steps each
    "sharding": Group("optax._src.sharding_test"),
}
QUICK = Group(ALIAS, r"^test_(?!optimization ).*opt_name='(adam|sgd|sgd_mom)'")

DEVIATIONS = {
    "test_explicit_dtype": (
        "looks for the slots `mu` and `trace`: ours is `momentum`. It is kept in float32, or as `state_dtype` says, "
        "for parameters of 16 bits too, and never in a complex dtype for real ones"
    ),
}


def installed() -> bool:
    """Whether optax is there with its tests, and scikit-learn, which they import."""
    return all(importlib.util.find_spec(name) for name in ("optax", "sklearn")) and bool(
        importlib.util.find_spec(ALIAS)
    )


def outcomes(group: Group, swapped: bool) -> dict[str, str | None]:
    """Return the error of each test, by its name: "" if it passed, None if it skipped itself."""
    command = [sys.executable, "-m", "tests.interop.optax_swap", group.module, f"--only={group.only}"]
    done = subprocess.run(
        [*command, "--swapped"] if swapped else command,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"optax's tests could not be run:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def deviates(name: str) -> bool:
    return name.split()[0] in DEVIATIONS


def main() -> None:
    parser = argparse.ArgumentParser(description="optax's own tests with our kernels.")
    parser.add_argument("groups", nargs="+", choices=GROUPS)
    unknown = False
    for group in parser.parse_args().groups:
        theirs, ours = (outcomes(GROUPS[group], swapped) for swapped in (False, True))
        failed = {name for name, why in ours.items() if why and not theirs[name]}
        counts = [sum(why == "" for why in found.values()) for found in (theirs, ours)]
        skipped = sum(why is None for why in ours.values())
        print(f"{group}: {len(ours)} tests, {skipped} skipped: {counts[0]} pass with optax's, {counts[1]} with ours")
        for name in sorted(failed):
            print(f"  fails: {name}: {DEVIATIONS.get(name.split()[0], 'NOT KNOWN: ' + str(ours[name])[:200])}")
        for name in sorted(name for name in ours if deviates(name) and name not in failed):
            print(f"  listed as a deviation, but it is none: {name}")
        unknown |= failed != {name for name in ours if deviates(name)}
    sys.exit(unknown)


if __name__ == "__main__":
    main()
