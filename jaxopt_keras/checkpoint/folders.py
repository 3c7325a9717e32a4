"""Checkpoints in an Orbax folder: every process writes its own shards, and any number of devices can read them."""

import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxopt_keras.language.optional import optional


def write(path: Any, arrays: Mapping[str, Any]) -> None:
    """Writes arrays, which may be sharded over processes, and waits until they are written."""
    path = _absolute(path)
    found = {name: x if isinstance(x, jax.Array) else np.asarray(x) for name, x in arrays.items()}
    kept = {name: x for name, x in found.items() if x.size}  # Orbax refuses empty arrays
    mode = path.stat().st_mode if isinstance(path, Path) and path.exists() else None
    with _orbax().StandardCheckpointer() as checkpointer:
        checkpointer.save(path, kept, force=True)
    if mode is not None:
        path.chmod(stat.S_IMODE(mode))  # that of the folder that it replaced


def read(path: Any, like: Mapping[str, Any], choose: Callable[[Mapping[str, Any]], Iterable[str]]) -> dict[str, Any]:
    """Reads the arrays of a folder that `write` made, or of an item in a step of a `CheckpointManager`.

    An array is sharded like the one in `like` with its name and shape. Others are replicated.

    Args:
        choose: as in `files.read`.

    Raises:
        FileNotFoundError: if there is no folder. ValueError: if it is no Orbax checkpoint of names and arrays, contains
        links, or declares chunks larger than their array.
    """
    path = _absolute(path)
    if isinstance(path, Path):
        _check_files(path)
    ocp = _orbax()
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = getattr(checkpointer.metadata(path), "item_metadata", None)
        saved = getattr(tree, "tree", tree)
        if not isinstance(saved, Mapping):
            raise ValueError(
                f"{path} is no Orbax checkpoint of names and arrays. For a CheckpointManager, pass the item: "
                'manager.directory / "STEP" / "default".'
            )
        replicated = _replicated(like)
        declared = {}
        for name, x in saved.items():
            fits = name in like and like[name].shape == tuple(x.shape)
            sharding = like[name].sharding if fits else replicated
            declared[name] = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        wanted = {name: declared[name] for name in choose(declared)}
        for name in wanted:
            _check_chunks(name, saved[name])
        how = ocp.checkpoint_utils.construct_restore_args(wanted)
        return declared | checkpointer.restore(path, ocp.args.PyTreeRestore(wanted, how, partial_restore=True))


def _check_files(path: Path) -> None:
    """Refuses links inside the folder: their targets may be any files of this machine."""
    if not path.exists():
        raise FileNotFoundError(f"There is no folder {path}")
    if link := next((x for x in path.rglob("*") if x.is_symlink()), None):
        raise ValueError(
            f"{path} must contain all of its numbers itself. Received: {link}, a link to {link.readlink()}"
        )


def _check_chunks(name: str, saved: Any) -> None:
    """Refuses an array whose chunks are larger than itself: each is inflated as a whole."""
    chunk = getattr(getattr(saved, "storage", None), "chunk_shape", None)
    if chunk and any(n > max(size, 1) for n, size in zip(chunk, saved.shape, strict=True)):
        raise ValueError(
            f"`{name}` must be stored in chunks no larger than itself, of shape {tuple(saved.shape)}. Received: chunks "
            f"of shape {tuple(chunk)}"
        )


def _replicated(arrays: Mapping[str, Any]) -> Any:
    """The sharding that replicates over the mesh of `arrays`; without a mesh, the first local device."""
    shardings = (x.sharding for x in arrays.values())
    mesh = next((s.mesh for s in shardings if isinstance(s, NamedSharding)), None)
    return SingleDeviceSharding(jax.local_devices()[0]) if mesh is None else NamedSharding(mesh, PartitionSpec())


def _absolute(path: Any) -> Any:
    """The absolute path; an address such as `gs://...` is left as it is."""
    return path if "://" in str(path) else Path(path).absolute()


def _orbax() -> Any:
    return optional("orbax.checkpoint", "A folder", "orbax", " Or save to a .safetensors file.")
