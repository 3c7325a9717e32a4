"""Files: whole, or refused; the old one or the new one, whenever the process dies."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras import checkpoint
from jaxopt_keras.checkpoint import files

ROOT = Path(__file__).parents[2]
KERNEL = jk.adamw(0.1)
PARAMS = {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.zeros((), jnp.bfloat16)}


def state_at(steps):
    params, state = PARAMS, KERNEL.init(PARAMS)
    for _ in range(steps):
        params, state = KERNEL.step(params, state, jax.tree.map(jnp.ones_like, params), donate=False)
    return state


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, state_at(1))
    return path


def only(path):
    """There is nothing beside the file."""
    return [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "dtype", ["bfloat16", "float8_e4m3fn", "float16", "int8", "uint8", "int16", "float64", "complex64", "complex128"]
)
def test_dtypes(dtype, tmp_path):
    dtype = jnp.dtype(dtype)
    arrays = {"x": np.arange(6).astype(dtype).reshape(2, 3), "s": np.ones((), dtype), "e": np.zeros((0, 3), dtype)}
    arrays |= {
        "transposed": arrays["x"].T,
        "strided": arrays["x"][:, ::2],
    }  # of which the library would write the bytes
    files.write(tmp_path / "a.safetensors", arrays)
    found = files.read(tmp_path / "a.safetensors")
    assert found.keys() == arrays.keys()
    for name, x in arrays.items():
        np.testing.assert_array_equal(found[name], x, strict=True)


def test_other_programs_can_read_it(path):
    from safetensors.numpy import load_file

    np.testing.assert_array_equal(load_file(path)["slots/w/velocity"], state_at(1).slots["velocity"]["w"])


def test_what_is_no_whole_checkpoint_is_refused(path, tmp_path):
    from safetensors.numpy import save_file

    whole = path.read_bytes()

    def refused(data, match):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=match):
            checkpoint.load(path, KERNEL, PARAMS)

    refused(b"", "is empty")
    for cut in (1, 7, 8, 9, 50, len(whole) // 2, len(whole) - 1):
        refused(whole[:cut], "truncated, or of another format")
    refused(whole + b"\0", "truncated, or of another format")
    for foreign in (b"PK\x03\x04" + bytes(200), b"\x89HDF\r\n\x1a\n" + bytes(200), b"{}" * 50, os.urandom(300)):
        refused(foreign, "of another format")
    save_file({"w": np.ones(3)}, path)
    refused(path.read_bytes(), "no checkpoint of jaxopt_keras")
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "none.safetensors", KERNEL, PARAMS)
    with pytest.raises(ValueError, match="which is a folder"):
        (tmp_path / "folder.safetensors").mkdir()
        checkpoint.save(tmp_path / "folder.safetensors", state_at(1))


def test_a_flipped_bit_is_seen(path):
    """Any bit but those of the spaces that fill up the header, which mean nothing."""
    whole, expected = path.read_bytes(), checkpoint.to_dict(state_at(1))
    rng = np.random.default_rng(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [
        *range(0, 8 * 8, 5),
        *rng.integers(8 * 8, 8 * header, 150),
        *rng.integers(8 * header, 8 * len(whole), 100),
    ]
    for place in map(int, places):
        byte = place // 8
        data = bytearray(whole)
        data[byte] ^= 1 << place % 8
        path.write_bytes(data)
        try:
            found = files.read(path)
        except ValueError:
            continue
        assert json.loads(whole[8:header]) == json.loads(data[8:header]), place  # another spelling of the same
        assert all(np.array_equal(found[name], x) for name, x in expected.items())


def test_it_follows_links_and_keeps_to_itself(path, tmp_path):
    (tmp_path / "deep").mkdir()
    link = tmp_path / "deep" / "link.safetensors"
    link.symlink_to(path)
    checkpoint.save(link, state_at(2))
    assert link.is_symlink() and int(files.read(path)["step"]) == 2
    assert [p.name for p in link.parent.iterdir()] == [link.name]


def abandoned(leftover, seconds=2 * files.ABANDONED):
    """Make the file that a process leaves when it is killed, some time ago."""
    leftover.touch()
    os.utime(leftover, (0, time.time() - seconds))


class Died(BaseException):
    pass


CALLS = ["secrets.token_hex", "os.fsync", "os.replace", "os.unlink", "os.open", "os.close"]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", CALLS)
def test_an_error_at_any_call_leaves_a_whole_file(name, after, path, monkeypatch):
    module, _, call = name.partition(".")
    module, count = getattr(files, module), 0
    right = getattr(module, call)

    def dying(*args, **kwargs):
        nonlocal count
        count += 1
        if count == at and not after:
            raise Died
        result = right(*args, **kwargs)
        if count == at:
            raise Died
        return result

    for at in (1, 2):  # of fsync: the file's, and the folder's  # noqa: B007  # `dying` reads it
        count = 0
        abandoned(path.parent / f".{path.name}.0.tmp")
        with monkeypatch.context() as patched:
            patched.setattr(module, call, dying)
            try:
                checkpoint.save(path, state_at(2))
            except Died:
                pass
        assert int(checkpoint.load(path, KERNEL, PARAMS).count) in (1, 2)
    checkpoint.save(path, state_at(3))
    assert only(path) and int(files.read(path)["step"]) == 3


def test_killed_at_any_moment(tmp_path):
    """JAXOPT_KERAS_KILLS=1000 is the long run."""
    kills = os.environ.get("JAXOPT_KERAS_KILLS", "20")
    command = [sys.executable, "-m", "tests.checkpoint.killed", str(tmp_path), kills]
    ran = subprocess.run(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    codes, steps, leftovers = zip(*found["calls"], strict=True)
    assert codes == (9,) * 10 + (0,)
    assert steps == (1,) * 7 + (2,) * 4, "the old file until it is renamed, then the new one"
    assert leftovers == (0,) + (1,) * 6 + (0,) * 4
    steps, leftovers = zip(*found["kills"], strict=True)
    assert len(set(steps)) > 1 and 0 < sum(leftovers) < len(leftovers)


def test_a_living_save_is_left_alone(path):
    """It has written in the last hour."""
    theirs, leftover = (path.with_name(f".{path.name}.{x}.tmp") for x in ("theirs", "leftover"))
    abandoned(leftover)
    abandoned(theirs, seconds=files.ABANDONED / 2)
    checkpoint.save(path, state_at(2))
    assert theirs.exists() and not leftover.exists()


def test_a_file_system_without_locks_will_do(path, monkeypatch):
    def refused(*args):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", refused)
    checkpoint.save(path, state_at(2))
    assert int(files.read(path)["step"]) == 2
