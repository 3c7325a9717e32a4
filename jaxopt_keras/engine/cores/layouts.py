"""How stacks of matrices are placed on devices, whatever mesh they were sharded over.

Under `jit`, XLA knows shardings as blocks of devices, without the names of the user's mesh. Here the same devices form
a mesh with an axis for each prime factor of their number: every regular sharding is one over these axes.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

Axes = tuple[str, ...]


class Layout(NamedTuple):
    """The axes of the mesh over which each dimension of a stack of matrices is sharded."""

    batch: Axes = ()
    rows: Axes = ()
    columns: Axes = ()

    def divides(self, mesh: Mesh, shape: tuple[int, ...]) -> bool:
        """Whether all blocks of a stack have one size."""
        return all(n % math.prod(mesh.shape[a] for a in axes) == 0 for n, axes in zip(shape, self, strict=True))

    def sharding(self, mesh: Mesh) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*(axes or None for axes in self)))


def find_layouts(shardings: list[Sharding], shapes: list[tuple[int, ...]]) -> tuple[Mesh, list[Layout]]:
    """Return a mesh of all devices, and the layout of each stack on it.

    A stack whose sharding is not regular, or whose axes the devices do not divide, gets the layout without sharding.
    """
    # Maps are in the order of XLA's partitions, to which collectives refer. The devices divide these larger shapes.
    large = [tuple(n * s.num_devices for n in shape) for s, shape in zip(shardings, shapes, strict=True)]
    maps = [s.devices_indices_map(shape) for s, shape in zip(shardings, large, strict=True)]
    devices = np.array(list(maps[0]))
    blocks = [_blocks([*each.values()], shape) for each, shape in zip(maps, large, strict=True)]
    tried: list[tuple[Mesh, list[Layout | None]]] = []
    for sizes in _factors(len(devices)):
        mesh = Mesh(devices.reshape(sizes), tuple(f"axis{i}" for i in range(len(sizes))))
        tried.append((mesh, [_layout(mesh, each) for each in blocks]))
        if None not in tried[-1][1]:
            break
    mesh, found = min(tried, key=lambda x: x[1].count(None))
    return mesh, [x if x and x.divides(mesh, shape) else Layout() for x, shape in zip(found, shapes, strict=True)]


def _factors(n: int) -> Iterator[tuple[int, ...]]:
    """Yield the prime factors of `n` in each order."""
    if n == 1:
        yield ()
    for prime in range(2, n + 1):
        if n % prime == 0 and all(prime % i for i in range(2, prime)):
            yield from ((prime, *rest) for rest in _factors(n // prime))


def _blocks(indices: list[tuple[slice, ...]], shape: tuple[int, ...]) -> np.ndarray:
    """Return the number of each device's block along each dimension, of shape (dimensions, devices)."""
    bounds = np.array([[cut.indices(n)[:2] for cut, n in zip(each, shape, strict=True)] for each in indices])
    starts, ends = bounds[..., 0].T, bounds[..., 1].T
    return starts // (ends - starts)


def _layout(mesh: Mesh, blocks: np.ndarray) -> Layout | None:
    """Return the layout in which the devices have these blocks, or None if there is none."""
    sizes = mesh.devices.shape
    places = np.indices(sizes).reshape(len(sizes), -1)  # of each device, on each axis
    # The second device on an axis, with the first place on the others, tells how far a step on the axis goes.
    second = [int(np.flatnonzero((places.T == np.eye(len(sizes), dtype=int)[i]).all(1))[0]) for i in range(len(sizes))]
    axes = []
    for block in blocks:
        steps = {i: int(block[at]) for i, at in enumerate(second) if block[at]}
        used = sorted(steps, key=lambda i: -steps[i])
        strides = [math.prod(sizes[j] for j in used[k + 1 :]) for k in range(len(used))]
        if not np.array_equal(block, sum((places[i] * n for i, n in zip(used, strides, strict=True)), 0 * block)):
            return None
        axes.append(tuple(mesh.axis_names[i] for i in used))
    return Layout(*axes)
