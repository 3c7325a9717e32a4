"""A function of whole matrices, of many parameters and on any number of devices.

By itself, XLA gathers a sharded matrix several times for each product of a Newton-Schulz iteration. Here each device
receives some of the matrices whole, computes without communication, and sends them back: two exchanges for all matrices
of a shape, whatever their number and that of the iterations.

Under `jit` the shardings of arrays are known only when XLA divides the program among devices. `custom_partitioning` is
called then, so that it does not matter whether a mesh is set. On TPUs it does not exist: there the matrices are divided
over the mesh that is set or explicit, and without one XLA divides each product.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import custom_vmap
from jax.sharding import (
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    get_abstract_mesh,
    use_abstract_mesh,
)

from jaxopt_keras.engine.cores.layouts import Axes, Layout, find_layouts
from jaxopt_keras.language.places import platform

# Matrices that are multiplied at once on an accelerator: 512 of 2560 x 2560 took twice as long as 448 on GPUs.
MOST = 256
BUSY = 2**22  # elements of matrices that keep an accelerator busy if they are multiplied at once

Whole = Callable[[Any, Array], Array]  # of numbers and a matrix


def map_matrices(whole: Whole, numbers: Any, stacks: list[Array]) -> list[Array]:
    """Compute `whole(numbers, matrix)` of every matrix in stacks of shape (count, rows, columns), of one dtype.

    Args:
        whole: refers to no traced values but its arguments.
        numbers: a tree of scalars.
    """
    here, mesh = functools.partial(_on_one_device, whole), get_abstract_mesh()
    if AxisType.Manual in mesh.axis_types:
        return here(numbers, stacks)
    # XLA for a TPU has no custom partitioning (https://github.com/jax-ml/jax/issues/38196): without a mesh that is set,
    # it divides the products.
    if platform() == "tpu":
        return _on_mesh(here, mesh, numbers, stacks) if mesh.size > 1 else here(numbers, stacks)
    # From the inside out: what XLA divides among devices, what `vmap` does with it, and what is differentiated.
    batched = custom_vmap(functools.partial(_on_all_devices, whole))
    batched.def_vmap(functools.partial(_vmapped, whole, batched))
    everywhere = jax.custom_jvp(batched)
    everywhere.defjvp(lambda primals, tangents: jax.jvp(here, primals, tangents))
    return everywhere(numbers, stacks)


def _on_mesh(here: Any, mesh: AbstractMesh, numbers: Any, stacks: list[Array]) -> list[Array]:
    """Divide the matrices among all devices of the mesh that is set."""
    # How rows and columns are placed is left to XLA: split ones are exchanged, and copies gathered, once for all.
    free = PartitionSpec(None, PartitionSpec.UNCONSTRAINED, PartitionSpec.UNCONSTRAINED)
    stack, along = jax.lax.with_sharding_constraint(jnp.concatenate(stacks), free), PartitionSpec(mesh.axis_names)
    filled = jnp.pad(stack, ((0, -len(stack) % mesh.size), (0, 0), (0, 0)))
    each = jax.shard_map(lambda *x: here(*x)[0], in_specs=(PartitionSpec(), [along]), out_specs=along)
    back = jax.lax.with_sharding_constraint(each(numbers, [filled]), free)
    return _parted(back[: len(stack)], stacks)


def _on_one_device(whole: Whole, numbers: Any, stacks: list[Array]) -> list[Array]:
    return jax.lax.platform_dependent(
        numbers, stacks, cpu=functools.partial(_one_by_one, whole), default=functools.partial(_at_once, whole)
    )


def _one_by_one(whole: Whole, numbers: Any, stacks: list[Array]) -> list[Array]:
    """Compute each matrix alone: on one CPU a batched product is up to 1.9 times slower. Other cores compute others."""
    one = functools.partial(jax.jit(whole), numbers)  # traced once; the compiler inlines it
    return _in_rounds(lambda stack: jnp.stack([*map(one, stack)]), 1, 4, stacks)


def _at_once(whole: Whole, numbers: Any, stacks: list[Array]) -> list[Array]:
    """Compute all matrices as one stack, or as several that are long enough to keep a GPU busy."""
    least = min(MOST, -(-BUSY // max(1, stacks[0][0].size)))
    return _in_rounds(jax.vmap(functools.partial(whole, numbers)), least, MOST, stacks)


def _in_rounds(many: Callable[[Array], Array], least: int, most: int, stacks: list[Array]) -> list[Array]:
    """Compute the matrices a quarter at a time, in place, so that they need little more memory than their stack.

    Args:
        many: computes a stack of matrices.
        least, most: how many matrices are computed at a time.
    """
    total = sum(map(len, stacks))
    few = min(most, max(least, total // 4))
    if total < 4 * few:
        return _parted(many(jnp.concatenate(stacks)), stacks)
    stack, at = jnp.zeros((total, *stacks[0].shape[1:]), stacks[0].dtype), 0
    for x in stacks:  # a concatenation would keep them all beside it
        stack, at = jax.lax.dynamic_update_slice_in_dim(stack, x, at, 0), at + len(x)

    def replaced(start: Any, stack: Array, count: int = few) -> Array:
        found = many(jax.lax.dynamic_slice_in_dim(stack, start, count))
        return jax.lax.dynamic_update_slice_in_dim(stack, found, start, 0)

    rounds, rest = divmod(total, few)
    stack = jax.lax.fori_loop(0, rounds, lambda i, stack: replaced(i * few, stack), stack)
    return _parted(replaced(rounds * few, stack, rest) if rest else stack, stacks)


def _parted(stack: Array, like: list[Array]) -> list[Array]:
    """Return the parts of a stack, each as long as one of `like`."""
    ends = [sum(len(x) for x in like[:i]) for i in range(1, len(like))]
    return jnp.split(stack, ends)


def _vmapped(
    whole: Whole, batched: Callable[..., Any], size: int, axes: Any, numbers: Any, stacks: list[Array]
) -> tuple[Any, Any]:
    """Compute a batch of stacks as longer stacks; one by one where numbers differ."""
    of_numbers, of_stacks = axes
    out_axes = [True] * len(stacks)
    if any(jax.tree.leaves(of_numbers)):
        in_axes = jax.tree.map(lambda mapped: 0 if mapped else None, axes)
        return jax.vmap(functools.partial(_on_one_device, whole), in_axes=in_axes)(numbers, stacks), out_axes
    full = [x if mapped else jnp.broadcast_to(x, (size, *x.shape)) for x, mapped in zip(stacks, of_stacks, strict=True)]
    out = batched(numbers, [x.reshape(-1, *x.shape[2:]) for x in full])
    return [x.reshape(like.shape) for x, like in zip(out, full, strict=True)], out_axes


def _on_all_devices(whole: Whole, numbers: Any, stacks: list[Array]) -> list[Array]:
    """Compute the matrices wherever XLA has them. On one device that is `_on_one_device`."""
    from jax.experimental.custom_partitioning import custom_partitioning  # not needed to import this package

    leaves, tree = jax.tree.flatten(numbers)

    def here(leaves: list[Array], stacks: list[Array]) -> list[Array]:
        return _on_one_device(whole, tree.unflatten(leaves), stacks)

    def partition(_: Any, args: Any, __: Any) -> tuple[Any, ...]:
        _, given = args
        mesh, layouts = find_layouts([x.sharding for x in given], [tuple(x.shape) for x in given])

        def on_each(leaves: list[Array], stacks: list[Array]) -> list[Array]:
            with use_abstract_mesh(AbstractMesh((), ())):  # blocks have no shardings over the user's mesh
                return _exchanged(functools.partial(here, leaves), mesh, layouts, stacks)

        shardings = [layout.sharding(mesh) for layout in layouts]
        return mesh, on_each, shardings, ([NamedSharding(mesh, PartitionSpec())] * len(leaves), shardings)

    run = custom_partitioning(here)
    dims = [f"batch{i} rows{i} columns{i}" for i in range(len(stacks))]
    rule = f"{', '.join([''] * len(leaves) + dims)} -> {', '.join(dims)}"
    run.def_partition(partition, sharding_rule=rule, decode_shardings=False)
    return run(leaves, stacks)


def _exchanged(
    whole: Callable[[list[Array]], list[Array]], mesh: Mesh, layouts: list[Layout], stacks: list[Array]
) -> list[Array]:
    """Compute the matrices of which each device has blocks: those of one layout in one exchange there and back."""
    out = list(stacks)
    for layout in dict.fromkeys(layouts):
        own = [i for i, other in enumerate(layouts) if other == layout]
        parts = [stacks[i] for i in own]
        back = _parted(_exchange(whole, mesh, layout, jnp.concatenate(parts)), parts)
        for i, x in zip(own, back, strict=True):
            out[i] = x
    return out


def _exchange(whole: Callable[[list[Array]], list[Array]], mesh: Mesh, layout: Layout, blocks: Array) -> Array:
    """Divide the matrices among the devices along as many axes as it takes until each device has one.

    Where they are fewer than devices, several devices get the same one, and each keeps its own block of the result.
    """
    sharded = {*layout.batch, *layout.rows, *layout.columns}
    idle = [axis for axis in mesh.axis_names if axis not in sharded]  # devices with copies of the same blocks
    dividing, each = list[str](), len(blocks)
    for axis in (*layout.rows[::-1], *layout.columns[::-1], *idle):
        if each > 1:
            dividing, each = [*dividing, axis], -(-each // mesh.shape[axis])
    filled = each * math.prod(mesh.shape[axis] for axis in dividing)
    x = jnp.pad(blocks, ((0, filled - len(blocks)), (0, 0), (0, 0)))
    sharing = tuple(axis for axis in idle if axis in dividing)
    sides = [(_split(axes, dividing), side) for axes, side in ((layout.rows, 1), (layout.columns, 2))]
    for (whole_sides, exchanged), side in sides:
        x = jax.lax.all_to_all(x, exchanged, 0, side, tiled=True) if exchanged else x
        x = jax.lax.all_gather(x, whole_sides, axis=side, tiled=True) if whole_sides else x
    (x,) = whole([_own(x, mesh, sharing, 0)])
    x = jax.lax.all_gather(x, sharing, tiled=True) if sharing else x
    for (whole_sides, exchanged), side in reversed(sides):
        x = _own(x, mesh, whole_sides, side)
        x = jax.lax.all_to_all(x, exchanged, side, 0, tiled=True) if exchanged else x
    return x[: len(blocks)]


def _split(axes: Axes, dividing: list[str]) -> tuple[Axes, Axes]:
    """Return the axes along which all devices get the same matrices, and those along which they get others."""
    return tuple(a for a in axes if a not in dividing), tuple(a for a in axes if a in dividing)


def _own(x: Array, mesh: Mesh, axes: Axes, side: int) -> Array:
    """Return the block of a device along `axes`, if there are any."""
    if not axes:
        return x
    size = x.shape[side] // math.prod(mesh.shape[axis] for axis in axes)
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axes) * size, size, side)
