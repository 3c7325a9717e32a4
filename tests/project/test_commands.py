"""Every command of the project refuses bad values in one line before any work, and ends in one line at Ctrl-C."""

import argparse
import contextlib
import importlib
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import command

ROOT = Path(__file__).parents[2]
PROCESSES = {"benchmarks.memory", "benchmarks.collections.program"}  # started by a command


def commands() -> list[str]:
    """The modules of the commands: all that can be run, so that a new one is held to this too."""
    files = [path for folder in ("benchmarks", "examples") for path in sorted((ROOT / folder).rglob("*.py"))]
    runnable = [path.relative_to(ROOT).with_suffix("") for path in files if '== "__main__":' in path.read_text()]
    names = [".".join(path.parts).removesuffix(".__main__") for path in runnable]
    return [name for name in names if name not in PROCESSES]


COMMANDS = commands()


def module_of(name: str) -> Any:
    folder = ROOT / name.replace(".", "/")
    return importlib.import_module(f"{name}.__main__" if folder.is_dir() else name)


def options(name: str) -> list[argparse.Action]:
    """The documented options of a command that take a value."""
    return [
        each
        for each in module_of(name).parser()._actions
        if each.nargs != 0 and each.help is not argparse.SUPPRESS
    ]  # fmt: skip


def refused(name: str, capsys: Any, *arguments: str) -> str:
    """Run a command with bad arguments in this process; return the line that it ends with."""
    with pytest.raises(SystemExit) as stopped:
        module_of(name).main([*arguments])
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == "", (out, err)
    assert err.count("\n") == 1 and err.startswith(f"python -m {name}: "), err
    return err


@pytest.fixture
def bad(tmp_path: Path) -> dict[Any, list[str]]:
    """Values that each type of this project refuses."""
    (tmp_path / "file").write_text("not a page")
    nowhere, file = str(tmp_path / "no folder" / "x.json"), str(tmp_path / "file")
    return {
        "count": ["0", "-1", "1.5", "x", ""],
        "index": ["-1", "1.5", "x"],
        "threads": ["0", "-1", "x", "100000"],
        "positive": ["0", "-1", "nan", "inf", "x"],
        "pattern": ["(", "["],
        "text": [],
        "input_folder": [nowhere, file],
        "input_file": [nowhere, str(tmp_path)],
        "mnist_file": [nowhere, str(tmp_path), file],
        "output_file": [nowhere, str(tmp_path)],
        "page": [nowhere, str(tmp_path), file],
        "output_folder": [file, f"{file}/inside"],
        "tensorboard_folder": [file],
        "new_folder": [str(tmp_path), file],
    }


def test_all_are_found():
    assert {"benchmarks", "benchmarks.parity", "benchmarks.kernels", "examples.demo", "examples.lenet"} <= {*COMMANDS}
    assert len(COMMANDS) >= 13


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_refuses_bad_values(name: str, bad: dict[Any, list[str]], capsys: Any):
    for option in options(name):
        kind = getattr(option.type, "__name__", None)
        assert option.choices is not None or kind in bad, f"{option.dest} has no choices, and no type of `command`"
        for value in ["no such"] if option.choices is not None else bad[kind]:
            flags = option.option_strings[:1]
            line = refused(name, capsys, *(f"{flag}={value}" for flag in flags) if flags else (value,))
            assert "/".join(option.option_strings) in line or option.dest in line


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_no_option(name: str, capsys: Any):
    line = refused(name, capsys, "--no-such")
    assert "unrecognized arguments: --no-such" in line or "arguments are required" in line


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_the_name(name: str, capsys: Any):
    parser = module_of(name).parser()
    assert isinstance(parser, command.Parser)
    with pytest.raises(SystemExit) as stopped:
        module_of(name).main(["--help"])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0 and shown.startswith(f"usage: python -m {name} [-h]")
    assert len(parser.description) > 20
    for each in options(name):
        assert each.help or each.choices, f"{each.dest} is not explained"


def run(name: str, *arguments: str, **settings: Any) -> subprocess.Popen[str]:
    program = [sys.executable, "-m", name, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(program, cwd=ROOT, text=True, **pipes, **settings)


@pytest.mark.parametrize("seconds", [0.7, 6.0], ids=["while it imports", "while it works"])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [("benchmarks", ["--workload", "gpt2", "--peer"]), ("examples.lenet", ["--epochs", "1000"])],
    ids=["benchmarks", "examples"],
)
def test_ctrl_c_ends_in_one_line(name: str, arguments: list[str], seconds: float, tmp_path: Path):
    """The packages of all commands do this (`command.end_in_one_line`), so one of each is run."""
    out = ["--out", str(tmp_path)] if name.startswith("examples") else []
    process, err = run(name, *arguments, *out), ""
    time.sleep(seconds)
    for _ in range(10):  # Python drops an interrupt that comes in a finalizer, and the user presses again
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            _, err = process.communicate(timeout=10)
            break
    assert process.returncode == command.INTERRUPTED and err.splitlines()[-1] == "Interrupted.", err
    assert "Traceback" not in err


def test_a_missing_package_is_named(tmp_path: Path):
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError('No module', name='matplotlib')")
    process = run("examples.schedules", env={"PYTHONPATH": str(tmp_path), "PATH": ""})
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2
    assert err == "This needs the package `matplotlib`. The project's extras have it: pip install '.[bench,demo]'\n"


def test_a_page_keeps_what_is_around_the_table(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- x -->\nold\n<!-- x -->\nafter\n")
    assert command.page_with("<!-- x -->")(str(page)) == page
    command.place(page, "<!-- x -->", "new\n")
    assert page.read_text() == "before\n<!-- x -->\nnew\n<!-- x -->\nafter\n"
    command.place(tmp_path / "alone.md", "<!-- x -->", "new\n")
    assert (tmp_path / "alone.md").read_text() == "new\n"


def test_progress_elsewhere_than_on_a_terminal_is_lines(monkeypatch: pytest.MonkeyPatch, capsys: Any):
    now = iter(range(0, 1000, 6))
    monkeypatch.setattr(command.time, "monotonic", lambda: float(next(now)))
    with command.progress("[a] title", 4) as tell:
        for i in range(5):
            tell(i, lambda i=i: f"step {i}")
    out, err = capsys.readouterr()
    assert out == "" and re.findall(r"^\[a\] title: (\d+)% step (\d)$", err, re.MULTILINE) == [("25", "1"), ("75", "3")]
