"""Two processes with two devices each, on loopback, equal one device; what they save, one process restores."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from examples import multiprocess

ROOT = Path(__file__).parents[2]


def run(module, count, *arguments):
    """The outputs of so many processes, which must all end well."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", module, address, str(count), str(i), *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment,
        )
        for i in range(count)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert all(process.returncode == 0 for process in started), "\n".join(outputs)
    return outputs


def test_two_processes_equal_one_device(tmp_path):
    assert "worst" in run("tests.engine.multiprocess", 2, tmp_path, "save")[0]
    run("tests.engine.multiprocess", 1, tmp_path, "restore")


def test_the_example(tmp_path, capfd):
    assert multiprocess.main(["--steps", "20", "--save", str(tmp_path / "checkpoint")]) == 0
    out = capfd.readouterr().out
    assert "2 processes, 4 devices" in out and "all-gather" in out
