"""Keras's own tests, as the installed package ships them, with our classes in the place of Keras's.

    python -m tests.interop.keras_own optimizers | schedules | trainer | callbacks

runs a group twice, with Keras's classes and with ours (`keras_swap`). What fails only with ours must be in
`DEVIATIONS`, and what is there must fail. tests/README.md lists them, and docs/keras.md their reasons.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
_spec = importlib.util.find_spec("keras")
KERAS = Path(_spec.origin).parent / "src" if _spec and _spec.origin else None

GROUPS = {
    "optimizers": ["optimizers/*_test.py"],
    "schedules": ["optimizers/schedules/*_test.py"],
    "trainer": ["backend/jax/trainer_test.py", "trainers/trainer_test.py"],
    "callbacks": [
        f"callbacks/{name}_test.py"
        for name in (
            "backup_and_restore", "callback", "early_stopping", "learning_rate_scheduler", "model_checkpoint",
            "reduce_lr_on_plateau", "terminate_on_nan",
        )
    ],
}  # fmt: skip
QUICK = ["optimizers/optimizer_test.py"]

WORDING = "the same error in other words"
PRIVATE = "reaches into the arithmetic, of which our classes have no copy: `wrapped` runs it in one compiled call"
UPDATES = "under accumulation `iterations` counts updates, and the sum starts anew on the first call of a window"
DENSE = "looks for sparse `assign`s in Python; ours are one compiled call. The values are tested, and agree"

DEVIATIONS = {
    "adamw_test.AdamWTest.test_weight_decay_is_none": WORDING,
    "ftrl_test.FtrlTest.test_invalid_initial_accumulator_value": WORDING,
    "ftrl_test.FtrlTest.test_invalid_l1_regularization_strength": WORDING,
    "ftrl_test.FtrlTest.test_invalid_l2_regularization_strength": WORDING,
    "ftrl_test.FtrlTest.test_invalid_l2_shrinkage_regularization_strength": WORDING,
    "ftrl_test.FtrlTest.test_invalid_learning_rate_power": WORDING,
    "lion_test.LionTest.test_invalid_beta_1": WORDING,
    "sgd_test.SGDTest.test_invalid_momentum": WORDING,
    "muon_test.MuonTest.test_Newton_Schulz": PRIVATE,
    "muon_test.MuonTest.test_adamw_single_step": PRIVATE,
    "muon_test.MuonTest.test_adamw_weight_decay": PRIVATE,
    "muon_test.MuonTest.test_lr_adjust_2d": PRIVATE,
    "muon_test.MuonTest.test_lr_adjust_none": PRIVATE,
    "muon_test.MuonTest.test_muon_single_step": PRIVATE,
    "muon_test.MuonTest.test_should_use_adamw": PRIVATE,
    "nadam_test.NadamTest.test_build_with_empty_var_list": PRIVATE,
    "optimizer_test.OptimizerTest.test_gradient_accumulation": UPDATES,
    "optimizer_test.OptimizerTest.test_overwrite_with_gradient_with_gradient_accumulation": (
        "accumulation does not go with variables that gradients overwrite: a `ValueError` says so"
    ),
    "optimizer_sparse_test.OptimizerSparseTest.test_sparse_gradients_adadelta": DENSE,
    "optimizer_sparse_test.OptimizerSparseTest.test_sparse_gradients_adafactor": DENSE,
    "optimizer_sparse_test.OptimizerSparseTest.test_sparse_gradients_adagrad": DENSE,
    "optimizer_sparse_test.OptimizerSparseTest.test_sparse_gradients_loss_scale_optimizer_sgd": DENSE,
    "optimizer_sparse_test.OptimizerSparseTest.test_sparse_gradients_rmsprop": DENSE,
    "optimizer_sparse_test.OptimizerSparseTest.test_sparse_gradients_sgd": DENSE,
}


def found(patterns: Sequence[str]) -> list[Path]:
    """The files; none where Keras is not installed, or without its tests."""
    return [path for pattern in patterns for path in sorted(KERAS.glob(pattern))] if KERAS else []


def outcomes(files: Sequence[Path], swapped: bool) -> dict[str, bool]:
    """Whether each test passed, by "file.Class.test"."""
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        plugin = ["-p", "tests.interop.keras_swap"] if swapped else []
        alone = ["-p", "no:cacheprovider", "-W", "ignore", "-c", os.devnull, f"--rootdir={KERAS}", "--tb=no", "-q"]
        command = [sys.executable, "-m", "pytest", *plugin, *alone, f"--junitxml={report.name}", *map(str, files)]
        environment = os.environ | {"KERAS_BACKEND": "jax", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
        if done.returncode not in (0, 1):  # 1: tests failed
            raise RuntimeError(f"pytest could not run Keras's tests:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        cases = xml.etree.ElementTree.parse(report.name).iter("testcase")
        return {_name(case): case.find("failure") is None and case.find("error") is None for case in cases}


def _name(case: xml.etree.ElementTree.Element) -> str:
    return ".".join([*case.attrib["classname"].split(".")[-2:], case.attrib["name"]])


def main() -> None:
    parser = argparse.ArgumentParser(description="Keras's own tests with our classes.")
    parser.add_argument("groups", nargs="+", choices=GROUPS)
    files = found([pattern for group in parser.parse_args().groups for pattern in GROUPS[group]])
    theirs, ours = outcomes(files, swapped=False), outcomes(files, swapped=True)
    failed = {name for name, passed in ours.items() if not passed and theirs[name]}
    expected = {name for name in DEVIATIONS if name in ours}
    print(f"{len(ours)} tests: {sum(theirs.values())} pass with Keras's classes, {sum(ours.values())} with ours")
    for name in sorted(failed):
        print(f"  fails: {name}: {DEVIATIONS.get(name, 'NOT KNOWN')}")
    for name in sorted(expected - failed):
        print(f"  listed as a deviation, but it is none: {name}")
    sys.exit(failed != expected)


if __name__ == "__main__":
    main()
