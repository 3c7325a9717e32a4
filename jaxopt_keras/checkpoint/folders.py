"""An Orbax folder: every process writes its own shards, and any number of devices reads them."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np


def write(path: Any, arrays: Mapping[str, Any]) -> None:
    """Writes arrays, which may be sharded over processes, and waits until all of it is there."""
    found = {name: x if isinstance(x, jax.Array) else np.asarray(x) for name, x in arrays.items()}
    kept = {name: x for name, x in found.items() if x.size}  # Orbax refuses what is empty
    with _orbax().StandardCheckpointer() as checkpointer:
        checkpointer.save(_whole(path), kept, force=True)


def read(path: Any, like: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a folder that `write` made, or of an item of a `CheckpointManager`'s step.

    Each comes to where the array of its name in `like` lies, if it has its shape; others lie on every device whole.

    Raises:
        FileNotFoundError: if there is nothing. ValueError: if it is no such folder.
    """
    path = _whole(path)
    if isinstance(path, Path) and not path.exists():
        raise FileNotFoundError(f"There is no {path}")
    with _orbax().StandardCheckpointer() as checkpointer:
        tree = getattr(checkpointer.metadata(path), "item_metadata", None)
        saved = getattr(tree, "tree", tree)
        if not isinstance(saved, Mapping):
            raise ValueError(
                f"{path} is no Orbax checkpoint of names and arrays. Of a CheckpointManager, pass the item: "
                'manager.directory / "STEP" / "default".'
            )
        elsewhere = _everywhere(like)
        wanted = {}
        for name, x in saved.items():
            fits = name in like and like[name].shape == tuple(x.shape)
            sharding = like[name].sharding if fits else elsewhere
            wanted[name] = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        return checkpointer.restore(path, wanted)


def _everywhere(arrays: Mapping[str, Any]) -> Any:
    """Whole on each device of the mesh that there is, if there is one."""
    for x in arrays.values():
        if isinstance(x.sharding, jax.sharding.NamedSharding):
            return jax.sharding.NamedSharding(x.sharding.mesh, jax.sharding.PartitionSpec())
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _whole(path: Any) -> Any:
    """A path that does not depend on the present folder; an address (gs://...) is one as it is."""
    return path if "://" in str(path) else Path(path).absolute()


def _orbax() -> Any:
    try:
        return importlib.import_module("orbax.checkpoint")
    except ImportError as error:
        raise ImportError(
            "Folders need Orbax: pip install 'jaxopt_keras[orbax]', or save to a .safetensors file."
        ) from error
