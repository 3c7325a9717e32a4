"""The stateful face's slots between two steps: in one buffer where that is faster, and by path for whoever looks."""

import functools
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from jaxopt_keras.engine.native import unavailable
from jaxopt_keras.engine.pipeline import LOOSE
from jaxopt_keras.flat import LARGE, Flat, flat
from jaxopt_keras.options import Options

FEW = 8  # arrays: below, there is nothing to gain


class Resting(Mapping[str, Any]):
    """Slots by path, taken out of their buffer on the first look. As a pytree it is a dict."""

    def __init__(self, held: Flat, paths: Collection[str]) -> None:
        self._held, self._paths = held, tuple(paths)

    def held(self, paths: Collection[str]) -> Flat | None:
        """The buffer of the slots of just these; None once somebody has looked, who may change what he saw."""
        return self._held if tuple(paths) == self._paths and "_by_path" not in self.__dict__ else None

    @functools.cached_property
    def _by_path(self) -> dict[str, Any]:
        return _unpacked(self._held)

    def flattened(self) -> tuple[list[tuple[Any, Any]], tuple[str, ...]]:
        """The slots with their keys, and the paths. This is no look: the arrays are copies."""
        tree = self.__dict__.get("_by_path") or _unpacked(self._held)
        return [(jax.tree_util.DictKey(path), tree[path]) for path in sorted(tree)], tuple(sorted(tree))

    def __getitem__(self, path: str) -> Any:
        return self._by_path[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __or__(self, other: Any) -> dict[str, Any]:
        return self._by_path | dict(other)


jax.tree_util.register_pytree_with_keys(
    Resting,
    Resting.flattened,
    lambda paths, values: dict(zip(paths, values, strict=True)),  # type: ignore[arg-type]  # once looked at, a dict
)


def rests(options: Options, params: dict[str, Any], slots: Any) -> bool:
    """Whether the slots of these arrays are to lie in one buffer. `slots`: as they are now."""
    if options.flat_state is not None:
        return options.flat_state
    alone = all(type(p.sharding) is SingleDeviceSharding for p in params.values())
    if isinstance(slots, Resting):
        return alone
    small = any(1 < p.size <= LARGE for p in params.values())
    return alone and small and len(params) >= FEW and not _is_slower(options)


def _is_slower(options: Options) -> bool:
    """Whether the step would take slots out of their buffer and put them back, since no loop works within it."""
    elsewhere = options.engine == "xla" or jax.default_backend() != "cpu" or bool(unavailable())
    return elsewhere or options.offload is not None or options.sparse == "lazy"


def taken(slots: Any, paths: Collection[str]) -> Flat:
    """The slots of some paths as a step takes them."""
    held = slots.held(paths) if isinstance(slots, Resting) else None
    return _flat({path: slots[path] for path in paths}) if held is None else held


_flat, _unpacked = jax.jit(functools.partial(flat, apart=LOOSE)), jax.jit(Flat.unpack)
