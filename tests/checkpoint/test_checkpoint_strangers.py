"""Files from others: they read no other file, and take no more memory than the target of the checkpoint needs."""

import json
import os
import stat
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras import checkpoint
from jaxopt_keras.checkpoint import files

KERNEL, PARAMS = jk.sgd(0.1, momentum=0.9, variant="optax"), {"w": jnp.ones(6)}
STATE = KERNEL.init(PARAMS)
SLOT = "slots/w/momentum"
HUGE = (2**34,)
SECRET = np.arange(6, dtype=np.float32)


# --- HDF5 -----------------------------------------------------------------------------------------------------------


def with_other_file(change):
    def attack(h5py, group):
        with h5py.File("other.h5", "w") as other:
            other["x"] = SECRET
        return change(h5py, group)

    return attack


def external(h5py, group):
    SECRET.tofile("secret")
    group.create_dataset("2", (6,), "f4", external=[("secret", 0, 24)])


def virtual(h5py, group):
    layout = h5py.VirtualLayout((6,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (6,))
    group.create_virtual_dataset("2", layout)


def external_link(h5py, group):
    group["2"] = h5py.ExternalLink("other.h5", "/x")


def soft_link(h5py, group):
    group.file["else"] = SECRET
    group["2"] = h5py.SoftLink("/else")


def linked_group(h5py, group):
    group["2"] = SECRET
    group.file.move("optimizer", "real")
    group.file["optimizer"] = h5py.SoftLink("/real")


def compressed(h5py, group):
    group.create_dataset("2", (6,), "f4", data=SECRET, compression="gzip", chunks=(2**24,), maxshape=(None,))


def filtered(h5py, group):
    group.create_dataset("2", (6,), "f4", data=SECRET, shuffle=True)


def low_by_attribute_only(h5py, group):
    group.create_dataset("2", (6,), "f4").attrs["dtype"] = "bfloat16"


ELSEWHERE = "must contain all of its numbers itself"
HDF5 = {
    "external storage": (with_other_file(external), ELSEWHERE),
    "virtual": (with_other_file(virtual), ELSEWHERE),
    "external link": (with_other_file(external_link), ELSEWHERE),
    "dangling link": (external_link, ELSEWHERE),
    "soft link": (soft_link, ELSEWHERE),
    "linked group": (linked_group, ELSEWHERE),
    "gzip": (compressed, "without filters"),
    "shuffle": (filtered, "without filters"),
    "huge": (lambda h5py, group: group.create_dataset("2", HUGE, "f4"), r"Received: \[.*17179869184"),
    "strings": (lambda h5py, group: group.create_dataset("2", (6,), h5py.string_dtype()), "must contain numbers"),
    "references": (lambda h5py, group: group.create_dataset("2", (6,), h5py.ref_dtype), "must contain numbers"),
    "structs": (lambda h5py, group: group.create_dataset("2", (6,), [("a", "f4")]), "must contain numbers"),
    "bfloat16 of 4 bytes": (low_by_attribute_only, "must contain numbers"),
    "a group": (lambda h5py, group: group.create_group("2"), "must be a Dataset"),
}


@pytest.mark.parametrize("name", HDF5)
def test_hdf5(name, tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    monkeypatch.chdir(tmp_path)
    attack, match = HDF5[name]
    with h5py.File("a.weights.h5", "w") as file:
        group = file.create_group("optimizer/vars")
        group["0"], group["1"] = np.int32(3), np.float32(0.1)
        attack(h5py, group)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.stat().st_size < 2**20}
    with pytest.raises(ValueError, match=match):
        checkpoint.from_keras(KERNEL, PARAMS, "a.weights.h5")
    with pytest.raises(ValueError, match=match if name != "huge" else "must have variables of shapes"):
        checkpoint.to_keras(KERNEL, STATE, PARAMS, path="a.weights.h5")
    assert all((tmp_path / name).read_bytes() == data for name, data in before.items()), "written through a link"


def test_a_keras_archive_is_refused(tmp_path):
    pytest.importorskip("h5py")
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
        archive.writestr("model.weights.h5", b"")
    with pytest.raises(ValueError, match="Take `model.weights.h5` out"):
        checkpoint.from_keras(KERNEL, PARAMS, tmp_path / "a.keras")


# --- all formats ----------------------------------------------------------------------------------------------------


def sparse_safetensors(path, declared):
    """A file that declares these shapes and takes no space on the disk."""
    header, end = {"__metadata__": {files.MAKER: files.OURS, files.DIGEST: "blake2b:0"}}, 0
    for name, (dtype, shape) in declared.items():
        size = int(np.prod(shape)) * int(dtype[1:]) // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    data = json.dumps(header).encode()
    data += b" " * (-len(data) % 8)
    with open(path, "wb") as file:
        file.write(len(data).to_bytes(8, "little") + data)
        file.truncate(8 + len(data) + end)


ENTRIES = {"format": ("I32", []), "step": ("I32", [])}
WRONG = {
    "a slot": (SLOT, r"`slots/w/momentum` must have the shape \(6,\).*17179869184"),
    "a counter": ("step", r"`step` must have the shape \(\)"),
    "codes": (f"{SLOT}.int8", "codes of shape"),
}


@pytest.mark.parametrize("name", WRONG)
def test_safetensors(name, tmp_path, monkeypatch):
    entry, match = WRONG[name]
    more = {f"{SLOT}.scales": ("F32", [1])} if name == "codes" else {}
    sparse_safetensors(tmp_path / "a.safetensors", ENTRIES | more | {entry: ("F32", HUGE)})
    monkeypatch.setattr(files, "digest", lambda *args: pytest.fail("read before the shapes were compared"))
    with pytest.raises(ValueError, match=match):
        checkpoint.load(tmp_path / "a.safetensors", KERNEL, PARAMS)
    optimizer = jk.SGD(0.1, momentum=0.9)
    optimizer.build([jk.Variable(jnp.ones(6), name="w")])
    with pytest.raises(ValueError, match=match):
        checkpoint.load(tmp_path / "a.safetensors", optimizer)


def test_safetensors_parameters(tmp_path):
    sparse_safetensors(tmp_path / "a.safetensors", {"params/w": ("F32", HUGE)})
    with pytest.raises(ValueError, match=r"`params/w` must have the shape \(6,\)"):
        checkpoint.load_params(tmp_path / "a.safetensors", PARAMS)


@pytest.mark.parametrize("suffix", [".safetensors", ""], ids=["file", "folder"])
def test_entries_without_use_are_not_read(suffix, tmp_path):
    if not suffix:
        pytest.importorskip("orbax.checkpoint")
    path = tmp_path / f"a{suffix}"
    checkpoint.save(path, STATE, {"other": jnp.ones((3, 3)), **PARAMS})
    reader = checkpoint.saving.files if suffix else checkpoint.saving.folders
    like = {} if suffix else {SLOT: STATE.slots["momentum"]["w"]}
    found = reader.read(path, *([] if suffix else [like]), lambda declared: [SLOT])
    assert isinstance(found[SLOT], (np.ndarray, type(PARAMS["w"])))
    assert not hasattr(found["params/other"], "__array__") and found["params/other"].shape == (3, 3)
    assert int(checkpoint.load(path, KERNEL, PARAMS).count) == 0


@pytest.mark.parametrize("change", ["slot", "link"])
def test_folders(change, tmp_path):
    pytest.importorskip("orbax.checkpoint")
    path = tmp_path / "a"
    shape = 7 if change == "slot" else 6
    checkpoint.save(path, KERNEL.init({"w": jnp.ones(shape)}), PARAMS)
    match = r"`slots/w/momentum` must have the shape \(6,\)"
    if change == "link":
        (tmp_path / "secret").write_bytes(b"secret")
        (path / "d" / "x").symlink_to(tmp_path / "secret")
        match = f"{ELSEWHERE}. Received: .*x, a link to .*secret"
        with pytest.raises(ValueError, match=match):
            checkpoint.load_params(path, PARAMS)
    with pytest.raises(ValueError, match=match):
        checkpoint.load(path, KERNEL, PARAMS)


@pytest.mark.parametrize("chunks", [[2**30], [7]])
def test_chunks_larger_than_their_array(chunks, tmp_path):
    """A few bytes that inflate to gigabytes."""
    pytest.importorskip("orbax.checkpoint")
    tensorstore, path = pytest.importorskip("tensorstore"), tmp_path / "a"
    checkpoint.save(path, STATE, PARAMS)
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{path}/"}).result()
    declared = json.loads(store.read(f"{SLOT}/.zarray").result().value)
    store.write(f"{SLOT}/.zarray", json.dumps(declared | {"chunks": chunks}).encode()).result()
    with pytest.raises(ValueError, match=rf"`{SLOT}` must be stored in chunks no larger.*shape \({chunks[0]},\)"):
        checkpoint.load(path, KERNEL, PARAMS)
    assert checkpoint.load_params(path, PARAMS)["w"].shape == (6,)


def test_npz(tmp_path):
    """Declared sizes are compared before an archive is inflated; pickled objects are refused, even if allowed."""
    path, good = tmp_path / "a.npz", checkpoint.to_dict(STATE)
    np.savez_compressed(path, **(good | {"params/x": np.ones(3)}))
    with np.load(path) as archive:
        assert int(checkpoint.from_dict(KERNEL, PARAMS, archive).count) == 0
    np.savez_compressed(path, **{n: x for n, x in good.items() if n != SLOT})
    header = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
    header += str({"descr": "<f4", "fortran_order": False, "shape": HUGE}).encode().ljust(117) + b"\n"
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{SLOT}.npy", header)
    with np.load(path) as archive, pytest.raises(ValueError, match=r"must have the shape \(6,\).*17179869184"):
        checkpoint.from_dict(KERNEL, PARAMS, archive)
    np.savez(path, **(good | {SLOT: np.array([Unpickled()] * 6)}))
    with np.load(path, allow_pickle=True) as archive, pytest.raises(TypeError, match=f"`{SLOT}` must be an array"):
        checkpoint.from_dict(KERNEL, PARAMS, archive)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("format.npy", b"no array")
    with np.load(path) as archive, pytest.raises(ValueError, match="`format` must be an array in NumPy's format"):
        checkpoint.from_dict(KERNEL, PARAMS, archive)


class Unpickled:
    def __reduce__(self):
        return pytest.fail, ("unpickled",)


@pytest.mark.parametrize(
    "name, x, error, match",
    [
        (f"{SLOT}.scales", np.ones((2,), np.float32), ValueError, "scales of shape"),
        (f"{SLOT}.scales", np.ones((1,), np.float64), TypeError, "scales of .* must have the dtype float32"),
        (f"{SLOT}.int8", np.ones((6,), np.float32), TypeError, "codes of .* must have the dtype int8"),
        (SLOT, np.ones((6,), [("a", "f4")]), TypeError, "must be convertible to float32"),
        (SLOT, np.ones((6,), "M8[s]"), TypeError, "must be convertible to float32"),
    ],
)
def test_arrays_of_wrong_kinds(name, x, error, match):
    whole = {"format": np.int32(1), "step": np.int32(1)}
    if name != SLOT:
        whole |= {f"{SLOT}.int8": np.ones(6, np.int8), f"{SLOT}.scales": np.ones(1, np.float32)}
    with pytest.raises(error, match=match):
        checkpoint.from_dict(KERNEL, PARAMS, whole | {name: x})


# --- the mode of a file ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
@pytest.mark.parametrize("suffix", [".safetensors", ""], ids=["file", "folder"])
def test_a_private_checkpoint_stays_private(suffix, tmp_path, monkeypatch):
    if not suffix:
        pytest.importorskip("orbax.checkpoint")
    path = tmp_path / f"a{suffix}"
    mode = lambda: stat.S_IMODE(path.stat().st_mode)
    old = os.umask(0o027)
    try:
        checkpoint.save(path, STATE)
        assert mode() & 0o027 == 0 and mode() & 0o600 == 0o600
        path.chmod(0o700 if not suffix else 0o600)
        seen = []
        monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode)))
        checkpoint.save(path, STATE)
    finally:
        os.umask(old)
    assert mode() == (0o700 if not suffix else 0o600)
    assert not suffix or seen[0] == 0o600, "private also while it is written"


# --- arguments in a wrong order -------------------------------------------------------------------------------------

K, S, P, D, F = KERNEL, STATE, PARAMS, checkpoint.to_dict(STATE), "a.safetensors"
TORCH = {"state": {}, "param_groups": [{"params": [0]}]}
CALLS = [
    ("from_keras", (F, K, P), "kernel"), ("from_keras", (P, K, [1]), "kernel"), ("from_keras", (K, S, P), "params"),
    ("from_keras", (K, F, P), "params"), ("from_keras", (K, P, P), "variables"),
    ("to_keras", (S, K, P), "kernel"), ("to_keras", (K, P, S), "state"), ("to_keras", (K, S, K), "params"),
    ("from_optax", (P, K, S), "kernel"), ("from_optax", (K, S, P), "params"), ("from_optax", (K, P, P), "opt_state"),
    ("to_optax", (S, K, S), "kernel"), ("to_optax", (K, P, S), "state"), ("to_optax", (K, S, P), "template"),
    ("from_torch", (P, K, TORCH, ["w"]), "kernel"), ("from_torch", (K, S, TORCH, ["w"]), "params"),
    ("from_torch", (K, P, ["w"], TORCH), "state_dict"),
    ("to_torch", (S, K, TORCH, ["w"]), "kernel"), ("to_torch", (K, TORCH, S, ["w"]), "state"),
    ("from_dict", (D, K, P), "kernel"), ("from_dict", (K, D, P), "params"), ("from_dict", (K, S, D), "params"),
    ("from_dict", (K, P, S), "checkpoint"), ("to_dict", (K,), "state"), ("to_dict", (F,), "state"),
    ("save", (S, F), "path"), ("save", (F, P, S), "state"), ("save", (F, F), "state"),
    ("load", (K, F, P), "path"), ("load", (F, P, K), "kernel"), ("load", (F, K, S), "params"),
    ("load", (F, K, "w"), "params"), ("load_params", (P, F), "path"), ("load_params", (F, S), "params"),
    ("load_params", (F, K), "params"),
]  # fmt: skip


@pytest.mark.parametrize("name, arguments, told", CALLS)
def test_arguments_in_a_wrong_order(name, arguments, told):
    with pytest.raises((TypeError, ValueError), match=rf"(`{told}`|{told}) must be .*Received: "):
        getattr(checkpoint, name)(*arguments)


def test_the_order_is_told():
    with pytest.raises(TypeError, match=r"kernel='a.safetensors'. The order is `from_keras\(kernel, params, variables"):
        checkpoint.from_keras(F, KERNEL, PARAMS)
