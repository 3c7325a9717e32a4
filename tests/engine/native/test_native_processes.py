"""Native loops in several processes: what they share in two caches, and what they do without one of them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxopt_keras.engine.native import unavailable

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())
ROOT = Path(__file__).parents[3]


@pytest.fixture
def start(tmp_path):
    """Starts a process whose caches, of XLA's programs and of our loops, are folders of the test."""
    running = []

    def started(how="alone", **changed):
        caches = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla"), "JAXOPT_KERAS_CACHE": str(tmp_path / "loops")}
        least = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.engine.native.native_process", how], cwd=ROOT, text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"} | caches | least | changed,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        running.append(process)
        return process

    yield started
    for process in running:
        process.kill()


def finished(process):
    """Return the results of its processes, and its other output."""
    out, error = process.communicate(timeout=100)
    assert process.returncode == 0, error
    return json.loads(out.splitlines()[-1]), error


def test_two_caches(start, tmp_path):
    # Both caches are empty, and two processes race to fill them.
    (first,), (second,) = [finished(process)[0] for process in [start(), start()]]
    assert first["loops"] == 2 and first["bits"] == second["bits"]
    # Later ones find every program in XLA's cache, one of native loops too, and get the same bits from it; and that
    # wherever the loops themselves come from, since lowering registers what a cached program calls.
    (tmp_path / "file").touch()
    others = {
        "both caches": start(),
        "no folder for loops": start(JAXOPT_KERAS_CACHE=str(tmp_path / "file")),
        "another compiler": start(CC=f"{os.environ.get('CC', 'cc')} -g"),  # its loops have other names
    }
    for name, process in others.items():
        (found,), error = finished(process)
        assert (found["bits"], found["loops"]) == (first["bits"], 2), name
        assert found["hits"] > 0 and (found["misses"] > 0) == (name == "another compiler"), name
        assert ("not kept for later processes" in error) == (name == "no folder for loops"), error


@pytest.mark.parametrize("how", ["spawn", "fork"])
def test_workers(start, how):
    """Forked before JAX has started anything. JAX itself forbids it later: a large step hangs, native or not."""
    found, error = finished(start(how, PYTHONWARNINGS="error"))
    assert len({each["bits"] for each in found}) == 1 and [each["loops"] for each in found] == [2, 2], error


@pytest.mark.skipif(shutil.which("clang") is None, reason="no clang")
def test_clang(start):
    (found,), error = finished(start(CC="clang"))
    assert found["loops"] == 2 and not error
