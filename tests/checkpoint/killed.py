"""Processes that die while they save, for `test_checkpoint_files.py`: what is left of the file, as JSON.

python -m tests.checkpoint.killed FOLDER KILLS

First one process for each call that `files` makes of the system, which dies just before it (writes are cut in two
halves: in between is a moment too). Then so many that save in a loop and are killed at random.
"""

import builtins
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from jaxopt_keras.checkpoint import files

BIG = np.zeros(400_000, np.float32)


def save(path, step):
    files.write(path, {"step": np.asarray(step), "big": BIG + step})


def whole(path):
    """The step in the file, in which all must be of one save."""
    found = files.read(path)
    assert (found["big"] == found["step"]).all()
    return int(found["step"])


def leftovers(path):
    return len(list(path.parent.iterdir())) - 1


def age(path):
    """Makes what is left so old that the next save removes it."""
    for leftover in path.parent.glob(".*.tmp"):
        os.utime(leftover, (0, 0))


def forked(run):
    """A process that runs nothing else, and is gone afterwards."""
    process = os.fork()
    if not process:
        try:
            run()
        finally:
            os._exit(0)
    return process


class Slow:
    """A file whose every call may be the last of the process."""

    def __init__(self, file, dying):
        self.file, self.dying, self.fileno, self.flush = file, dying, file.fileno, dying(file.flush)

    def write(self, data):
        half = len(data) // 2
        for part in (data[:half], data[half:]):
            self.dying(self.file.write)(part)
            self.file.flush()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.dying(self.file.close)()


def save_and_die(path, at):
    """Without a word, just before the so manieth call; status 9 if there is one."""
    count = 0

    def dying(call):
        def wrapped(*args, **kwargs):
            nonlocal count
            count += 1
            if count == at:
                os._exit(9)
            return call(*args, **kwargs)

        return wrapped

    def opened(name, mode):
        return Slow(dying(builtins.open)(name, mode), dying) if "x" in mode else builtins.open(name, mode)

    files.open = opened
    for name in ("open", "fsync", "replace", "close"):
        setattr(os, name, dying(getattr(os, name)))
    save(path, 2)


def save_again_and_again(path):
    step = 2
    while True:
        save(path, step)
        step += 1


def at_every_call(folder):
    """[status, step in the file, leftovers] for each death, and the last one, which finds no such call."""
    found, code = [], 9
    while code == 9:
        path = folder / str(len(found)) / "a.safetensors"
        path.parent.mkdir(parents=True)
        save(path, 1)
        process = forked(lambda path=path: save_and_die(path, len(found) + 1))
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        found.append([code, whole(path), leftovers(path)])
        age(path)
        save(path, 3)
        assert whole(path) == 3 and not leftovers(path)
    return found


def at_random(folder, kills):
    """[step in the file, leftovers] for each kill."""
    path, rng, found = folder / "a.safetensors", np.random.default_rng(0), []
    folder.mkdir()
    for _ in range(kills):
        save(path, 1)
        process = forked(lambda: save_again_and_again(path))
        time.sleep(rng.uniform(0, 0.06))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        found.append([whole(path), leftovers(path)])
        age(path)
    save(path, 1)
    assert not leftovers(path)
    return found


if __name__ == "__main__":
    folder, kills = Path(sys.argv[1]), int(sys.argv[2])
    print(json.dumps({"calls": at_every_call(folder / "calls"), "kills": at_random(folder / "kills", kills)}))
