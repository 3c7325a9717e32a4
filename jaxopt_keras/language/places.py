"""Where the arrays of a program are while it is traced: on which platform, and how they are split over devices.

A traced array does not tell this. Programs that keep slots in a form for the machine, or that the compiler of one
platform needs in other words, ask here.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.core import Tracer
from jax.sharding import NamedSharding

from jaxopt_keras.language.paths import leaves_by_path

Shape = tuple[int, ...]


class Place(NamedTuple):
    """The place of one array."""

    platform: str  # "cpu", "gpu", "tpu"
    shard: Shape  # its shape on each device


class Places(NamedTuple):
    """The places of the arrays of a tree."""

    platform: str
    shards: tuple[tuple[str, Shape], ...] = ()  # by path, of the arrays that are split

    @classmethod
    def of(cls, params: Any) -> "Places":
        """Return the places of arrays, or of `jax.ShapeDtypeStruct`s with shardings."""
        known = [(path, p) for path, p in leaves_by_path(params) if _devices(p)]
        shards = {path: p.sharding.shard_shape(p.shape) for path, p in known if isinstance(p.sharding, NamedSharding)}
        split = [(path, shards[path]) for path, p in known if shards.get(path, p.shape) != p.shape]
        return cls(platform_of(known[0][1]) if known else platform(), tuple(split))

    @contextlib.contextmanager
    def traced(self) -> Iterator[None]:
        """Trace programs for these places."""
        token = _HERE.set(self)
        try:
            yield
        finally:
            _HERE.reset(token)


_HERE = contextvars.ContextVar[Places | None]("places", default=None)


def _devices(x: Any) -> Any:
    """Return the devices of an array, or of a struct with a sharding; nothing for what is traced."""
    sharding = None if isinstance(x, Tracer) else getattr(x, "sharding", None)
    is_abstract = isinstance(getattr(sharding, "mesh", None), jax.sharding.AbstractMesh)
    return () if sharding is None or is_abstract else sharding.device_set


def platform_of(x: Any) -> str:
    """Return the platform of an array; for one that is traced, or a struct without a sharding, that of the program."""
    return next((device.platform for device in _devices(x)), None) or platform()


def platform() -> str:
    """Return the platform for which the program is traced."""
    here = _HERE.get()
    return jax.default_backend() if here is None else here.platform


def place_of(path: str, p: Any) -> Place:
    """Return the place of the parameter at `path`."""
    here = _HERE.get()
    explicit = jax.typeof(p).sharding  # of axes of a mesh that are explicit
    shard = dict(here.shards).get(path) if here else None
    if shard is None or len(shard) != p.ndim:
        shard = explicit.shard_shape(p.shape) if any(explicit.spec) else p.shape
    return Place(platform(), shard)
