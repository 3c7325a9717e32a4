"""HDF5 files: opens the datasets of a group, and refuses those whose numbers are not in the file itself.

A link, external storage or a virtual dataset may name any file that this process can read, and so copy it into a state
that is published later (CVE-2026-1669). A filter such as gzip may inflate a few bytes to any size.
"""

import contextlib
import zipfile
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxopt_keras.language.optional import optional

NEEDED = ("A `.weights.h5` file", "keras")
BFLOAT16 = "bfloat16"  # HDF5 has no such dtype: Keras stores two bytes per number, and the dtype in an attribute


@contextlib.contextmanager
def opened(path: Any, group: str, mode: str) -> Iterator[list[Any]]:
    """The datasets 0, 1, ... of a group, with known places and dtypes, before anything in them is read.

    Args:
        mode: "r" to read, "r+" to overwrite numbers.

    Raises:
        OSError: if the file cannot be opened. ValueError: if it has no such group, or a dataset is refused.
    """
    library = optional("h5py", *NEEDED)
    if zipfile.is_zipfile(path):
        raise ValueError(f"{path} must be an HDF5 file. Received: an archive. Take `model.weights.h5` out of it first.")
    with library.File(path, mode) as file:
        found = file
        for name in group.split("/"):
            found = _member(path, found, name, library.Group)
        yield [_checked(path, _member(path, found, str(i), library.Dataset)) for i in range(len(found))]


def read(dataset: Any) -> np.ndarray:
    """The numbers of a dataset."""
    return np.array(dataset).view(dtype_of(dataset))


def dtype_of(dataset: Any) -> Any:
    """The dtype of the numbers in a dataset."""
    named = dataset.attrs.get("dtype")
    return jnp.dtype(BFLOAT16) if isinstance(named, str) and named == BFLOAT16 else dataset.dtype


def _member(path: Any, group: Any, name: str, kind: type) -> Any:
    """A member of a group. Links are not followed, not even to see whether their targets exist."""
    links, key = group.id.links, name.encode()
    place = f"{group.name.rstrip('/')}/{name}"
    if not links.exists(key):
        raise ValueError(f"{path} must contain an optimizer's variables. Received: a file without `{place}`")
    if links.get_info(key).type != optional("h5py", *NEEDED).h5l.TYPE_HARD:
        raise _elsewhere(path, place, "a link")
    if not isinstance(found := group[name], kind):
        raise ValueError(f"`{place}` in {path} must be a {kind.__name__}. Received: {type(found).__name__}")
    return found


def _checked(path: Any, dataset: Any) -> Any:
    if dataset.external:
        raise _elsewhere(path, dataset.name, "a dataset with external storage")
    if dataset.is_virtual:
        raise _elsewhere(path, dataset.name, "a virtual dataset")
    if dataset.id.get_create_plist().get_nfilters():
        raise ValueError(
            f"`{dataset.name}` in {path} must be stored without filters, as Keras stores it: a compressed dataset may "
            "inflate to any size. If you trust the file, copy it without filters: `h5repack -f NONE OLD NEW`."
        )
    dtype = dtype_of(dataset)
    if dtype.itemsize != dataset.dtype.itemsize or not jnp.issubdtype(dtype, jnp.number):
        raise ValueError(f"`{dataset.name}` in {path} must contain numbers. Received: {dataset.dtype} as {dtype}")
    return dataset


def _elsewhere(path: Any, place: str, what: str) -> ValueError:
    return ValueError(
        f"{path} must contain all of its numbers itself. Received: `{place}`, {what}, which may name any other file of "
        "this machine. Do not use the file, unless you made it: then copy the numbers into it."
    )
