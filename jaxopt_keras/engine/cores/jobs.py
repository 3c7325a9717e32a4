"""The updates of several parameters, whose matrices are computed together."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import Array
from jax.sharding import AxisType, get_abstract_mesh

from jaxopt_keras.engine.core import Slots


class Job(NamedTuple):
    """The update of one parameter."""

    skeleton: Any  # the rule without its numbers
    numbers: dict[str, Any]
    g: Array
    p: Any
    slots: Slots
    at: Any


def on_any_mesh(update: Callable[[list[Job]], list[Any]], jobs: list[Job]) -> list[tuple[Array, Slots]]:
    """Return the step and the new slots of each parameter, which `update` computes as on a mesh without explicit axes.

    Types do not always tell how a reshaped array is sharded: XLA decides, and results are sharded as before.
    """
    mesh = next((m for job in jobs if (m := jax.typeof(job.g).sharding.mesh).axis_names), get_abstract_mesh())
    explicit = tuple(a for a, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit)
    if not jobs or not explicit:
        return update(jobs)
    skeletons, arrays = [job.skeleton for job in jobs], [job[1:] for job in jobs]
    specs = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, [(job.g, job.slots) for job in jobs])
    leaves, structure = jax.tree.flatten(arrays)
    once = {id(x): x for x in leaves}  # what several jobs share, such as the clock, stays one array
    number = {key: i for i, key in enumerate(once)}

    def whole(shared: list[Any]) -> list[Any]:
        arrays = jax.tree.unflatten(structure, [shared[number[id(x)]] for x in leaves])
        return update([Job(x, *each) for x, each in zip(skeletons, arrays, strict=True)])

    run: Any = jax.sharding.auto_axes(whole, axes=explicit, out_sharding=specs)
    with jax.sharding.use_abstract_mesh(mesh):  # the user may have set none
        return run([*once.values()])
