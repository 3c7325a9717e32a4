"""Stacks of matrices of one shape, sharded over the devices of a mesh, for rules that need whole matrices.

By itself, XLA gathers a sharded matrix several times for each product of a Newton-Schulz iteration. Here each device
receives some of the matrices whole, computes without communication, and sends them back: two exchanges for each shape,
whatever the number of matrices and iterations. Without a mesh the matrices are not stacked: on one CPU a stack is up to
1.9 times slower.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec, get_abstract_mesh

FREE = PartitionSpec.UNCONSTRAINED


def map_matrices(whole: Any, us: list[Array]) -> list[Array]:
    """Compute `whole(u)` of every matrix, all of one shape and dtype; on a mesh, as a sharded stack."""
    mesh = get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or any(t == AxisType.Manual for t in mesh.axis_types):
        return [whole(u) for u in us]
    own = jax.typeof(us[0]).sharding.spec  # empty, unless axes are explicit
    if any(jax.typeof(u).sharding.spec != own for u in us):
        us = [reshard(u, mesh, own) for u in us]
    padded = us + [jnp.zeros_like(us[0])] * (-len(us) % mesh.size)
    # One axis of the mesh at a time: XLA has an exchange for that, and would gather everything otherwise.
    specs = [_stack_spec(mesh, own, mesh.axis_names[:n]) for n in range(len(mesh.axis_names) + 1)]
    stack = jnp.stack(padded)
    for spec in specs:
        stack = reshard(stack, mesh, spec)
    with jax.named_scope("whole"):
        stack = jax.vmap(whole)(stack)
    for spec in reversed(specs):
        stack = reshard(stack, mesh, spec)
    return [stack[i] for i in range(len(us))]


def _is_explicit(mesh: Mesh | AbstractMesh) -> bool:
    return all(t == AxisType.Explicit for t in mesh.axis_types)


def _stack_spec(mesh: AbstractMesh, own: Any, moved: tuple[str, ...]) -> PartitionSpec:
    """Return the sharding of a stack over the axes `moved`, with its matrices sharded as `own` over the other axes.

    With automatic axes XLA chooses the sharding of the matrices.
    """
    if not _is_explicit(mesh):
        of_matrix = (None, None) if len(moved) == len(mesh.axis_names) else (FREE, FREE)
    else:
        axes = [(a,) if isinstance(a, str) else a or () for a in (*own, None, None)[:2]]
        of_matrix = [tuple(a for a in names if a not in moved) or None for names in axes]
    return PartitionSpec(moved or None, *of_matrix)


def reshard(x: Array, mesh: Mesh | AbstractMesh, spec: Any) -> Array:
    """Return `x` with another sharding over `mesh`, whose axes are all explicit, or not."""
    return jax.sharding.reshard(x, spec) if _is_explicit(mesh) else jax.lax.with_sharding_constraint(x, spec)
