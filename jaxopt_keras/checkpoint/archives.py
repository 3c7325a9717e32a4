"""NumPy's `.npz` archives of named arrays."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from numpy.lib import format as npy
from numpy.lib.npyio import NpzFile


def read(archive: NpzFile, choose: Callable[[Mapping[str, Any]], Iterable[str]]) -> dict[str, Any]:
    """The entries of an archive: an array for each name that `choose` returns, shape and dtype for the others.

    Args:
        choose: maps shapes and dtypes by name to the names to read. It sees what the archive declares before anything
            is inflated; NumPy inflates no more than the declared size. It raises if they do not fit.

    Raises:
        ValueError: if an entry is no array.
    """
    declared = {name: _declared(archive, name) for name in archive.files}
    return declared | {name: archive[name] for name in choose(declared)}


def _declared(archive: NpzFile, name: str) -> jax.ShapeDtypeStruct:
    try:
        # `zip` is None in a closed archive only.
        with archive.zip.open(f"{name}.npy") as file:  # pyright: ignore[reportOptionalMemberAccess]
            header = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = header(file)
    except (KeyError, ValueError) as error:
        raise ValueError(f"`{name}` must be an array in NumPy's format. Received: other data ({error})") from error
    return jax.ShapeDtypeStruct(shape, dtype)
