"""A program whose state is split over an axis of a mesh, although its parameters are not (ZeRO-1).

Each device updates its share of every parameter, with its share of the state, and the shares are put together again:
gradients are scattered, new parameters gathered (Rajbhandari et al. 2020, arXiv:1910.02054).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxopt_keras.engine.programs.around import Around
from jaxopt_keras.engine.state import State
from jaxopt_keras.language.paths import path_of
from jaxopt_keras.storage.blockwise import Blocks


@dataclass(frozen=True)
class Zero1(Around):
    """Runs `inner` on shares: each array's first axis that the mesh axis divides is split over it.

    `specs` says where parameters lie, by path; those that are not in it lie on every device.
    """

    mesh: Mesh
    axis: str
    specs: tuple[tuple[str, PartitionSpec], ...] = ()

    def init(self, params: Any, hyper: dict[str, Any]) -> State:
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            state = self.inner.init(self._shares(params), hyper)
            return state._replace(slots=self._slots(params, state.slots))

    def step(self, params: Any, state: State, grads: Any, hyper: dict[str, Any], reduce: bool = True) -> Any:
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            new, moved = self.inner.step(self._shares(params), state, self._shares(grads), hyper, reduce=reduce)
            return self._home(new), moved._replace(slots=self._slots(params, moved.slots))

    def update(self, grads: Any, state: State, params: Any, hyper: dict[str, Any], reduce: bool = True) -> Any:
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            like = None if params is None else self._shares(params)
            deltas, moved = self.inner.update(self._shares(grads), state, like, hyper, reduce)
            return self._home(deltas), moved._replace(slots=self._slots(grads, moved.slots))

    def averaged(self, params: Any, state: State, hyper: dict[str, Any]) -> Any:
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            return self._home(self.inner.averaged(self._shares(params), state, hyper))

    def spec(self, path: str) -> PartitionSpec:
        return dict(self.specs).get(path, PartitionSpec())

    def share(self, path: str, shape: tuple[int, ...]) -> PartitionSpec:
        """Where a parameter's share lies."""
        return split(self.spec(path), shape, self.axis, self.mesh)

    def _shares(self, tree: Any) -> Any:
        return self._mapped(tree, self.share)

    def _home(self, tree: Any) -> Any:
        return self._mapped(tree, lambda path, shape: self.spec(path))

    def _mapped(self, tree: Any, spec: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda key, x: self._put(x, spec(path_of(key), x.shape)), tree)

    def _slots(self, params: Any, slots: Any) -> Any:
        """Slots of the parameter's shape are sharded like its share; others along their first divisible axis."""
        shapes = {path_of(key): x.shape for key, x in jax.tree_util.tree_leaves_with_path(params)}

        def one(key: Any, x: Any) -> Any:
            path = next((p for p in parents(path_of(key)) if p in shapes), "")
            if isinstance(x, Blocks):
                return jax.tree.map(lambda part: self._put(part, self._of_blocks(path, x)), x)
            home = self.spec(path) if x.shape == shapes.get(path) else PartitionSpec()
            return self._put(x, split(home, x.shape, self.axis, self.mesh))

        is_leaf = lambda x: isinstance(x, Blocks)
        return {n: jax.tree_util.tree_map_with_path(one, tree, is_leaf=is_leaf) for n, tree in slots.items()}

    def _of_blocks(self, path: str, x: Blocks) -> PartitionSpec:
        """Codes and scales lie alike: the last axis is split only between blocks."""
        return split(self.spec(path), (*x.shape[:-1], x.scales.shape[-1]), self.axis, self.mesh)

    def _put(self, x: Any, spec: PartitionSpec) -> Any:
        if not hasattr(x, "ndim") or x.ndim < len(spec):
            return x
        sharding = NamedSharding(self.mesh, spec)
        if all(t == AxisType.Explicit for t in self.mesh.axis_types):
            return jax.sharding.reshard(x, sharding)
        return jax.lax.with_sharding_constraint(x, sharding)


def split(spec: PartitionSpec, shape: tuple[int, ...], axis: str, mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """`spec` with `axis` on the first free axis of the array that it divides; as it is where there is none.

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
    """The path and those above it."""
    while path:
        yield path
        path = path.rpartition("/")[0]
    yield ""
