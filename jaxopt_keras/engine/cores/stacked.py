"""A function of whole matrices, of many parameters and on any number of devices.

By itself, XLA gathers a sharded matrix several times for each product of a Newton-Schulz iteration, and every device
decomposes all matrices. Here each device receives some of the matrices whole, computes without communication, and sends
the results back: two exchanges for all matrices of a shape, whatever their number and that of the iterations.

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
import numpy as np
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

Results = tuple[Array, ...]
Whole = Callable[[Any, Array], Results]  # of numbers and a matrix
Here = Callable[[Any, list[Array]], list[Results]]  # of numbers and stacks, on one device


def map_matrices(whole: Whole, numbers: Any, stacks: list[Array], in_rounds: bool = True) -> list[Results]:
    """Compute `whole` of every matrix in stacks of shape (count, rows, columns), of one dtype.

    Args:
        whole: refers to no traced values but its arguments.
        numbers: a tree of scalars.
        in_rounds: whether a CPU computes few matrices at a time, in a loop, for their temporaries.

    Returns:
        For each stack those of the results.
    """
    here, mesh = functools.partial(_on_one_device, whole, in_rounds), get_abstract_mesh()
    if AxisType.Manual in mesh.axis_types:
        return here(numbers, stacks)
    # XLA for a TPU has no custom partitioning (https://github.com/jax-ml/jax/issues/38196): without a mesh that is set,
    # it divides the products.
    if platform() == "tpu":
        return _on_mesh(here, mesh, numbers, stacks) if mesh.size > 1 else here(numbers, stacks)
    # From the inside out: what XLA divides among devices, what `vmap` does with it, and what is differentiated.
    batched = custom_vmap(functools.partial(_on_all_devices, here))
    batched.def_vmap(functools.partial(_vmapped, here, batched))
    everywhere = jax.custom_jvp(batched)
    everywhere.defjvp(lambda primals, tangents: jax.jvp(here, primals, tangents))
    return everywhere(numbers, stacks)


def _on_mesh(here: Any, mesh: AbstractMesh, numbers: Any, stacks: list[Array]) -> list[Results]:
    """Divide the matrices among all devices of the mesh that is set."""
    # How rows and columns are placed is left to XLA: split ones are exchanged, and copies gathered, once for all.
    free = lambda x: PartitionSpec(None, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1))
    freed = lambda x: jax.lax.with_sharding_constraint(x, free(x))
    stack, along = freed(jnp.concatenate(stacks)), PartitionSpec(mesh.axis_names)
    filled = jnp.pad(stack, ((0, -len(stack) % mesh.size), (0, 0), (0, 0)))
    each = jax.shard_map(lambda *x: here(*x)[0], in_specs=(PartitionSpec(), [along]), out_specs=along)
    return _parted(tuple(freed(x)[: len(stack)] for x in each(numbers, [filled])), stacks)


def _on_one_device(whole: Whole, in_rounds: bool, numbers: Any, stacks: list[Array]) -> list[Results]:
    on_cpu = functools.partial(_one_by_one if in_rounds else _apart, whole)
    return jax.lax.platform_dependent(numbers, stacks, cpu=on_cpu, default=functools.partial(_at_once, whole))


def _one_by_one(whole: Whole, numbers: Any, stacks: list[Array]) -> list[Results]:
    """Compute each matrix alone, and others on other cores, a few at a time.

    On one CPU a batched product is up to 1.9 times slower. Batched calls of LAPACK can wait for each other's threads
    for ever, in jaxlib 0.10.
    """
    return _in_rounds(lambda stack: _apart(whole, numbers, [stack])[0], 1, 4, stacks)


def _apart(whole: Whole, numbers: Any, stacks: list[Array]) -> list[Results]:
    """Compute each matrix alone, all at the same time."""
    one = functools.partial(jax.jit(whole), numbers)  # traced once; the compiler inlines it
    return [tuple(map(jnp.stack, zip(*map(one, stack), strict=True))) for stack in stacks]


def _at_once(whole: Whole, numbers: Any, stacks: list[Array]) -> list[Results]:
    """Compute all matrices as one stack, or as several that are long enough to keep a GPU busy."""
    least = min(MOST, -(-BUSY // max(1, stacks[0][0].size)))
    return _in_rounds(jax.vmap(functools.partial(whole, numbers)), least, MOST, stacks)


def _in_rounds(many: Callable[[Array], Results], least: int, most: int, stacks: list[Array]) -> list[Results]:
    """Compute the matrices a quarter at a time, so that they need little more memory than their stack.

    The first results of their shape take their place.

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
    results = jax.eval_shape(many, jax.ShapeDtypeStruct((few, *stack.shape[1:]), stack.dtype))
    place = next((i for i, x in enumerate(results) if (x.shape[1:], x.dtype) == (stack.shape[1:], stack.dtype)), None)
    others = [jnp.zeros((total, *x.shape[1:]), x.dtype) for i, x in enumerate(results) if i != place]

    def replaced(start: Any, held: list[Array], count: int = few) -> list[Array]:
        found = [*many(jax.lax.dynamic_slice_in_dim(held[0], start, count))]
        found = [held[0] if place is None else found.pop(place), *found]
        write = jax.lax.dynamic_update_slice_in_dim
        return [old if x is old else write(old, x, start, 0) for old, x in zip(held, found, strict=True)]

    rounds, rest = divmod(total, few)
    held = jax.lax.fori_loop(0, rounds, lambda i, held: replaced(i * few, held), [stack, *others])
    first, *others = replaced(rounds * few, held, rest) if rest else held
    if place is not None:
        others.insert(place, first)
    return _parted(tuple(others), stacks)


def _parted(results: Results, like: list[Array]) -> list[Results]:
    """Return the parts of stacks, each as long as one of `like`."""
    ends = [sum(len(x) for x in like[:i]) for i in range(1, len(like))]
    return [*zip(*(jnp.split(x, ends) for x in results), strict=True)]


def _vmapped(
    here: Here, batched: Callable[..., Any], size: int, axes: Any, numbers: Any, stacks: list[Array]
) -> tuple[Any, Any]:
    """Compute a batch of stacks as longer stacks; one by one where numbers differ."""
    of_numbers, of_stacks = axes
    if any(jax.tree.leaves(of_numbers)):
        in_axes = jax.tree.map(lambda mapped: 0 if mapped else None, axes)
        out = jax.vmap(here, in_axes=in_axes)(numbers, stacks)
    else:
        pairs = zip(stacks, of_stacks, strict=True)
        full = [x if is_mapped else jnp.broadcast_to(x, (size, *x.shape)) for x, is_mapped in pairs]
        out = batched(numbers, [x.reshape(-1, *x.shape[2:]) for x in full])
        out = [tuple(y.reshape(*x.shape[:2], *y.shape[1:]) for y in own) for own, x in zip(out, full, strict=True)]
    return out, jax.tree.map(lambda _: True, out)


def _on_all_devices(here: Here, numbers: Any, stacks: list[Array]) -> list[Results]:
    """Compute the matrices wherever XLA has them. On one device that is `here`."""
    from jax.experimental.custom_partitioning import custom_partitioning  # not needed to import this package

    leaves, tree = jax.tree.flatten(numbers)
    first = jax.eval_shape(here, numbers, stacks)[0]
    in_place = [x.shape == stacks[0].shape for x in first]  # results that are placed as their matrices are

    def alone(leaves: list[Array], stacks: list[Array]) -> list[Array]:
        return [x for own in here(tree.unflatten(leaves), stacks) for x in own]

    def partition(_: Any, args: Any, __: Any) -> tuple[Any, ...]:
        _, given = args
        mesh, layouts = find_layouts([x.sharding for x in given], [tuple(x.shape) for x in given])

        def on_each(leaves: list[Array], stacks: list[Array]) -> list[Array]:
            with use_abstract_mesh(AbstractMesh((), ())):  # blocks have no shardings over the user's mesh
                run = functools.partial(here, tree.unflatten(leaves))
                return [x for own in _exchanged(run, mesh, layouts, stacks, in_place) for x in own]

        shardings = [layout.sharding(mesh) for layout in layouts]
        apart = [NamedSharding(mesh, PartitionSpec(layout.batch or None)) for layout in layouts]
        back = [x if same else y for x, y in zip(shardings, apart, strict=True) for same in in_place]
        return mesh, on_each, back, ([NamedSharding(mesh, PartitionSpec())] * len(leaves), shardings)

    run = custom_partitioning(alone)
    dims = [f"batch{i} rows{i} columns{i}" for i in range(len(stacks))]
    other = lambda i, k, x: " ".join([f"batch{i}", *(f"result{i}_{k}_{axis}" for axis in range(1, x.ndim))])
    back = [dims[i] if in_place[k] else other(i, k, x) for i in range(len(stacks)) for k, x in enumerate(first)]
    rule = f"{', '.join([''] * len(leaves) + dims)} -> {', '.join(back)}"
    run.def_partition(partition, sharding_rule=rule, decode_shardings=False)
    out = iter(run(leaves, stacks))
    return [tuple(next(out) for _ in first) for _ in stacks]


def _exchanged(
    whole: Callable[[list[Array]], list[Results]],
    mesh: Mesh,
    layouts: list[Layout],
    stacks: list[Array],
    in_place: list[bool],
) -> list[Results]:
    """Compute the matrices of which each device has blocks: those of one layout in one exchange there and back."""
    out: dict[int, Results] = {}
    for layout in dict.fromkeys(layouts):
        own = [i for i, other in enumerate(layouts) if other == layout]
        parts = [stacks[i] for i in own]
        back = _parted(_exchange(whole, mesh, layout, jnp.concatenate(parts), in_place), parts)
        out |= dict(zip(own, back, strict=True))
    return [out[i] for i in range(len(stacks))]


def _exchange(
    whole: Callable[[list[Array]], list[Results]], mesh: Mesh, layout: Layout, blocks: Array, in_place: list[bool]
) -> Results:
    """Divide the matrices among the devices along as many axes as it takes until each device has one.

    Where they are fewer than devices, several devices get the same one, and each keeps its own block of the result.

    Args:
        in_place: of each result, whether a device keeps the block that it has of the matrix; else it gets all.
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
    (results,) = whole([_own(x, mesh, sharing, 0)])
    results = _gathered(results, sharing)
    for (whole_sides, exchanged), side in reversed(sides):
        pairs = zip(results, in_place, strict=True)
        placed = tuple(_own(x, mesh, whole_sides, side) if is_block else x for x, is_block in pairs)
        results = _sent_back(placed, in_place, exchanged, side) if exchanged else placed
    return tuple(x[: len(blocks)] for x in results)


def _sent_back(results: Results, in_place: list[bool], axes: Axes, side: int) -> Results:
    """Return to each device along `axes` its block of results that are placed as the matrices, and others whole."""
    wholes = iter(_gathered(tuple(x for x, is_block in zip(results, in_place, strict=True) if not is_block), axes))
    back = lambda x: jax.lax.all_to_all(x, axes, side, 0, tiled=True)
    return tuple(back(x) if is_block else next(wholes) for x, is_block in zip(results, in_place, strict=True))


def _gathered(results: Results, axes: Axes) -> Results:
    """Gather stacks along `axes`: those of one dtype at once."""
    if not axes:
        return results
    out = [*results]
    for dtype in {x.dtype for x in results}:
        own = [i for i, x in enumerate(results) if x.dtype == dtype]
        flat = jnp.concatenate([results[i].reshape(len(results[i]), -1) for i in own], 1)
        ends = np.cumsum([results[i][0].size for i in own])[:-1]
        for i, x in zip(own, jnp.split(jax.lax.all_gather(flat, axes, tiled=True), ends, 1), strict=True):
            out[i] = x.reshape(-1, *results[i].shape[1:])
    return tuple(out)


def _split(axes: Axes, dividing: list[str]) -> tuple[Axes, Axes]:
    """Return the axes along which all devices get the same matrices, and those along which they get others."""
    return tuple(a for a in axes if a not in dividing), tuple(a for a in axes if a in dividing)


def _own(x: Array, mesh: Mesh, axes: Axes, side: int) -> Array:
    """Return the block of a device along `axes`, if there are any."""
    if not axes:
        return x
    size = x.shape[side] // math.prod(mesh.shape[axis] for axis in axes)
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axes) * size, size, side)
