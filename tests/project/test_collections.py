"""The command that runs collections of optimizer classes: what it finds, compares and refuses."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.collections.__main__ import counts, difference, parsed, ran
from benchmarks.collections.classes import Found, classes_in

PROGRAMS = """
import tensorflow as tf
from keras.src.optimizers import optimizer

class Plain(optimizer.Optimizer):
    def __init__(self, rate, optimizer=None, **kwargs):
        super().__init__(0.1, **kwargs)

    def update_step(self, gradient, variable, learning_rate):
        variable.assign_sub(tf.cast(learning_rate, variable.dtype) * gradient)

class Counts(optimizer.Optimizer):
    def __init__(self):
        super().__init__(0.1)
        self.t = 0

    def update_step(self, gradient, variable, learning_rate):
        self.t += 1
        variable.assign_sub(learning_rate * gradient / self.t)

class Crashes(optimizer.Optimizer):
    def __init__(self):
        super().__init__(0.1)

    def update_step(self, gradient, variable, learning_rate):
        import os
        os._exit(3)

class Hangs(Crashes):
    def update_step(self, gradient, variable, learning_rate):
        while True:
            pass

class Helper:
    pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "programs.py").write_text(PROGRAMS)
    (tmp_path / "broken.py").write_text("def (")
    return tmp_path


def test_classes_are_found_without_an_import(folder: Path):
    assert [x.name for x in classes_in(folder)] == ["Plain", "Counts", "Crashes", "Hangs"]
    (folder / "old.py").write_text("class Old(Base):\n    def _resource_apply_dense(self, g, v): pass\n")
    assert [x for x in classes_in(folder) if x.legacy] == [Found(folder / "old.py", "Old", True)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Plain", "the class wants arguments that the program cannot know: ['rate']"),
        ("Counts", "not compiled"),
        ("Crashes", "the process ended with 3"),
        ("Hangs", "no end after 12 s"),
    ],
)
def test_each_class_has_a_process_of_its_own(folder: Path, name: str, expected: str):
    found = Found(folder / "programs.py", name, False)
    assert expected in str(ran(found, "ours", folder / "result.npz", 12 if name == "Hangs" else 100))


def test_differences_and_counts(tmp_path: Path):
    paths = [tmp_path / f"{name}.npz" for name in "abc"]
    for path, x in zip(paths, ([1.0, np.nan], [1.5, np.nan], [1.0, 2.0]), strict=True):
        np.savez(path, np.array(x))
    assert difference(paths[0], paths[1]) == 0.5 and difference(paths[0], paths[2]) == np.inf
    rows = [{"verdict": "agrees", "how": "compiled"}, {"verdict": "own fails"}, {"verdict": "refused"}]
    assert counts(rows)["run with their own Keras"] == 2 and counts(rows)["of those that agree, compiled"] == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nowhere"], "must be a folder that can be read. Received: nowhere"),
        (["."], "has such an optimizer class"),
        ([".", "--jobs", "0"], "--jobs: must be a whole number of at least 1. Received: 0"),
        ([".", "--seconds", "soon"], "--seconds: must be a number greater than 0. Received: soon"),
        ([], "folder"),
    ],
)
def test_bad_arguments_exit_with_2(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    with pytest.raises(SystemExit) as caught:
        parsed([str(tmp_path) if a == "." else a for a in arguments])
    assert caught.value.code == 2 and text in capsys.readouterr().err
