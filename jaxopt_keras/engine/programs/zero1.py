"""A program with state sharded over an axis of a mesh, and parameters that are not (ZeRO-1).

Each device updates its shard of every parameter with its shard of the state: gradients are scattered, and new
parameters gathered (Rajbhandari et al. 2020, arXiv:1910.02054).
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxopt_keras.engine.parts import stacked
from jaxopt_keras.engine.programs.around import Around
from jaxopt_keras.engine.state import State
from jaxopt_keras.language.numerics import is_inexact
from jaxopt_keras.language.paths import leaves_by_path, map_by_path
from jaxopt_keras.language.places import Places, platform
from jaxopt_keras.storage.blockwise import Blocks


@dataclass(frozen=True)
class Zero1(Around):
    """Runs `inner` on shards: the first free axis of each array that the mesh axis divides is split over it.

    `specs` are the shardings of parameters by path; a parameter without one is replicated on every device.
    """

    mesh: Mesh
    axis: str
    specs: tuple[tuple[str, PartitionSpec], ...] = ()

    def init(self, params: Any, hyper: dict[str, Any]) -> State:
        shards = {path: self._shard_shape(path, p.shape) for path, p in leaves_by_path(params) if is_inexact(p)}
        places = Places(platform(), tuple(shards.items()))
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh), places.traced():
            state = self.inner.init(self._shard(params), hyper)
            return state._replace(slots=self._slots(params, state.slots))

    def call(self, params: Any, state: State, grads: Any, hyper: dict[str, Any], reduce: bool, write: bool) -> Any:
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            out, moved = self.inner.call(self._shard(params), state, self._shard(grads), hyper, reduce, write)
            like = grads if params is None else params
            return self._unshard(out, stacked(self.inner, like)), moved._replace(slots=self._slots(like, moved.slots))

    def averaged(self, params: Any, state: State, hyper: dict[str, Any]) -> Any:
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            return self._unshard(self.inner.averaged(self._shard(params), state, hyper))

    def spec(self, path: str) -> PartitionSpec:
        return dict(self.specs).get(path, PartitionSpec())

    def shard_spec(self, path: str, shape: tuple[int, ...]) -> PartitionSpec:
        """Return the sharding of a parameter during the step."""
        return split(self.spec(path), shape, self.axis, self.mesh)

    def _shard_shape(self, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        return NamedSharding(self.mesh, self.shard_spec(path, shape)).shard_shape(shape)

    def _shard(self, tree: Any) -> Any:
        put = lambda path, x: self._put(x, self.shard_spec(path, x.shape)) if is_inexact(x) else x
        return map_by_path(put, tree)

    def _unshard(self, tree: Any, together: Collection[str] = ()) -> Any:
        """Gather every array; those of one shape in `together` as one, as they have been computed."""
        groups: dict[Any, dict[str, Any]] = {}
        for path, x in leaves_by_path(tree):
            if path in together:
                groups.setdefault((x.shape, x.dtype, self.spec(path)), {})[path] = x
        whole: dict[str, Any] = {}
        for (shape, _, spec), own in groups.items():
            if len(own) == 1:
                continue
            shards = PartitionSpec(None, *self.shard_spec(next(iter(own)), shape))
            stack = self._put(self._put(jnp.stack([*own.values()]), shards), PartitionSpec(None, *spec))
            whole |= dict(zip(own, stack, strict=True))
        put = lambda path, x: whole[path] if path in whole else self._put(x, self.spec(path)) if is_inexact(x) else x
        return map_by_path(put, tree)

    def _slots(self, params: Any, slots: Any) -> Any:
        """Shard slots: those of the parameter's shape like its shards, others along their first divisible axis."""
        shapes = {path: x.shape for path, x in leaves_by_path(params)}

        def one(path: str, x: Any) -> Any:
            path = next((p for p in parents(path) if p in shapes), "")
            if isinstance(x, Blocks):  # codes and scales are sharded alike: an axis is split only between blocks
                spec = self.shard_spec(path, x.scales.shape)
                return jax.tree.map(lambda part: self._put(part, spec), x)
            spec = self.spec(path) if x.shape == shapes.get(path) else PartitionSpec()
            return self._put(x, split(spec, x.shape, self.axis, self.mesh))

        is_leaf = lambda x: isinstance(x, Blocks)
        return {n: map_by_path(one, tree, is_leaf) for n, tree in slots.items()}

    def _put(self, x: Any, spec: PartitionSpec) -> Any:
        if not hasattr(x, "ndim") or x.ndim < len(spec):
            return x
        sharding, kinds = NamedSharding(self.mesh, spec), self.mesh.axis_types
        is_explicit = all(kind == AxisType.Explicit for kind in kinds)
        return (jax.sharding.reshard if is_explicit else jax.lax.with_sharding_constraint)(x, sharding)


def split(spec: PartitionSpec, shape: tuple[int, ...], axis: str, mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """Return `spec` with the mesh axis on the first free axis of the array that it divides, if there is one.

    >>> mesh = AbstractMesh((4,), ("data",))
    >>> split(PartitionSpec(), (3, 8), "data", mesh)
    P(None, 'data')
    """
    parts = [*spec, *[None] * (len(shape) - len(spec))]
    used = {a for part in parts for a in ((part,) if isinstance(part, str) else part or ())}
    if axis in used:
        return spec
    for i, n in enumerate(shape):
        if parts[i] is None and n and n % mesh.shape[axis] == 0:
            return PartitionSpec(*parts[:i], axis, *parts[i + 1 :])
    return spec


def parents(path: str) -> Iterator[str]:
    """Yield the path, then those of the subtrees that contain it, up to ""."""
    while path:
        yield path
        path = path.rpartition("/")[0]
    yield ""
