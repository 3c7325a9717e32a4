"""Checkpoints in one safetensors file: written atomically, and validated when read.

The format has no checksum, so the metadata store a digest of all names, dtypes, shapes and data.
"""

import contextlib
import glob
import hashlib
import json
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_keras.language.optional import optional

DTYPES = {
    "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "F64": "float64", "F32": "float32", "F16": "float16", "C64": "complex64", "BOOL": "bool", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
}  # fmt: skip
MAKER, DIGEST, PAIRS = "made_by", "digest", "complex128"
OURS = "jaxopt_keras"
NEEDED = ("A file", "checkpoint", " Or save to a folder.")
ABANDONED = 3600.0  # seconds since the last write after which the writing process must have died


def write(path: Any, arrays: Mapping[str, Any]) -> None:
    """Writes arrays by name to a temporary file in the same folder, synchronises it, and renames it to `path`.

    Raises:
        TypeError: if an array cannot be stored. ValueError: if one is also on devices of other processes.
    """
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise ValueError(f"`path` must name a file. Received: {path}, which is a folder")
    flat: dict[str, Any] = {name: on_host(name, x, copy=None) for name, x in arrays.items()}
    pairs = [name for name, x in flat.items() if x.dtype == np.complex128]  # not in the format
    flat |= {name: np.stack([flat[name].real, flat[name].imag], axis=-1) for name in pairs}
    metadata = {MAKER: OURS, PAIRS: "\n".join(pairs)}
    metadata[DIGEST] = digest(flat, metadata)
    # `save_file` would rename a temporary file of its own without synchronising it.
    data = optional("safetensors.numpy", *NEEDED).save(flat, metadata=metadata)
    _remove_leftovers(path)
    _replace(path, data)


def read(path: Any, choose: Callable[[Mapping[str, Any]], Iterable[str]] = lambda declared: declared) -> dict[str, Any]:
    """Reads the arrays that `write` wrote: one for each name that `choose` returns, shape and dtype for the others.

    Args:
        choose: maps shapes and dtypes by name to the names to read. It sees what the header declares before anything
            else is read, and raises if that does not fit. Default: all.

    Raises:
        OSError: if the file cannot be opened. ValueError: if it is empty, truncated, damaged, or not made by `write`.
    """
    library = optional("safetensors", *NEEDED)
    if not os.path.getsize(path):
        raise ValueError(f"{path} is empty: no checkpoint.")
    data = np.memmap(path, np.uint8, "r")  # views of it take no memory
    try:
        with library.safe_open(path, "np"):  # checks that the header and the size of the file agree
            start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start].tobytes())
        metadata = dict(header.pop("__metadata__", {}))
        flat = {name: _view(data[start:], **entry) for name, entry in header.items()}
        pairs = {n: flat[n].view(np.complex128)[..., 0] for n in filter(None, metadata.get(PAIRS, "").split("\n"))}
    except Exception as error:  # safetensors raises a class of its own; a malformed header raises others
        raise ValueError(f"{path} is no whole safetensors file: truncated, or of another format ({error}).") from error
    if metadata.get(MAKER) != OURS:
        raise ValueError(
            f"{path} is a safetensors file, but no checkpoint of jaxopt_keras. Read it with safetensors, then convert "
            "it with `from_torch`, `from_keras` or `from_optax`."
        )
    declared = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in (flat | pairs).items()}
    chosen = choose(declared)
    if metadata.pop(DIGEST, None) != digest(flat, metadata):
        raise ValueError(f"{path} is damaged: its data differ from those that were written. Use an older checkpoint.")
    return declared | {name: np.array((flat | pairs)[name]) for name in chosen}


def _view(data: Any, dtype: str, shape: list[int], data_offsets: list[int]) -> Any:
    return data[slice(*data_offsets)].view(jnp.dtype(DTYPES[dtype])).reshape(shape)


def digest(flat: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """The BLAKE2 digest of all names, dtypes, shapes, data and metadata.

    BLAKE2 is the fastest cryptographic hash of `hashlib` on machines without SHA instructions.
    """
    total = hashlib.blake2b(repr(sorted(metadata.items())).encode(), digest_size=16)
    for name in sorted(flat):
        x = flat[name]
        total.update(repr((name, x.dtype.name, x.shape)).encode())
        total.update(x.reshape(-1).view(np.uint8).data)
    return f"blake2b:{total.hexdigest()}"


def on_host(name: str, x: Any, copy: bool | None = True) -> np.ndarray:
    """A NumPy array in row-major order: safetensors writes the raw bytes and ignores strides.

    Raises:
        ValueError: if the array is on devices of several processes.
    """
    if not getattr(x, "is_fully_addressable", True):
        raise ValueError(
            f"Every array must be on devices of this process. Received: `{name}`, which is also on devices of others. "
            "Save to a folder instead (a path without .safetensors), which Orbax writes."
        )
    return np.array(x, order="C", copy=copy)


def _replace(path: Path, data: bytes) -> None:
    """Writes `data` to a temporary file in the folder of `path`, and renames it; removes it after an error.

    The file keeps the mode of the one that it replaces: a private file stays private, also while it is written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            with contextlib.suppress(FileNotFoundError):  # a new file has the mode of the umask
                os.chmod(temporary, stat.S_IMODE(os.stat(path).st_mode))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if os.name != "nt":  # Windows cannot open a folder
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # so that the new name is on the disk too
        finally:
            os.close(descriptor)


def _remove_leftovers(path: Path) -> None:
    """Removes temporary files of processes that died while they wrote `path`. Younger ones may still be written."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):  # another process may have removed it
            if time.time() - leftover.stat().st_mtime > ABANDONED:
                os.unlink(leftover)
