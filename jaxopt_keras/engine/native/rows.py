"""Pass: a gather of rows before a loop and a scatter after it become part of the loop.

The update of the rows that a sparse gradient touches then reads and writes them in place, each once. Otherwise a single
thread copies the rows of every array out and in, one array after the other.
"""

from dataclasses import replace
from typing import Any

from jax import lax

from jaxopt_keras.engine.native.ir import Equation, Value
from jaxopt_keras.engine.native.loop import Leaf, verified


def is_gather(e: Equation) -> bool:
    """Whether it takes whole rows by their numbers, which are clipped to the rows that exist."""
    axes = "offset_dims", "collapsed_slice_dims", "start_index_map", "operand_batching_dims"
    return (
        _moves_rows(e, "gather", lax.GatherScatterMode.CLIP, axes)
        and tuple(e.params["slice_sizes"]) == (1, *e.inputs[0].shape[1:])
        and e.inputs[1].shape == (e.outputs[0].shape[0], 1)
    )


def is_scatter(e: Equation) -> bool:
    """Whether it writes whole rows, each number at most once, and drops numbers of rows that do not exist."""
    axes = "update_window_dims", "inserted_window_dims", "scatter_dims_to_operand_dims", "operand_batching_dims"
    return (
        _moves_rows(e, "scatter", lax.GatherScatterMode.FILL_OR_DROP, axes)
        and e.params["unique_indices"]
        and e.inputs[2].shape == (e.inputs[1].shape[0], *e.inputs[0].shape[1:])
    )


def _moves_rows(e: Equation, name: str, mode: Any, axes: tuple[str, ...]) -> bool:
    """Whether `axes` are those of whole rows: within a row, collapsed, indexed, and those of batches (none)."""
    if e.name != name or e.params["mode"] != mode:
        return False
    found = [getattr(e.params["dimension_numbers"], axis) for axis in axes]
    return found == [(*range(1, len(e.inputs[0].shape)),), (0,), (0,), ()]


def in_place(leaf: Leaf, makers: dict[Value, Equation], readers: list[list[Equation | None]]) -> Leaf | None:
    """The loop over the rows in place, with the gathers and scatters among its equations.

    None if it has totals, or writes a result elsewhere than to the same rows of an array that it reads: it then needs
    copies of the rows.

    Args:
        makers: the equation that makes each value.
        readers: for each result, the equations that read it; None stands for an output of the trace.
    """
    gathers = {k: e for k, x in enumerate(leaf.inputs) if (e := makers.get(x)) is not None and is_gather(e)}
    if leaf.totals or not gathers or any(len(some) != 1 for some in readers):
        return None
    scatters = [e for (e,) in readers if e is not None and is_scatter(e)]
    place = {e.inputs[0]: k for k, e in gathers.items()}
    updates = [place.get(e.inputs[0]) for e in scatters]
    numbers = {e.inputs[1] for e in (*gathers.values(), *scatters)}
    others = [x for k, x in enumerate(leaf.inputs) if k not in gathers]
    if (
        [e.inputs[2] for e in scatters] != [*leaf.outputs]
        or None in updates
        or len({*updates}) < len(updates)
        or len(numbers) > 1
        or any(0 in x.shape for x in (*place, *numbers))
        or any(x.shape[0] != scatters[0].inputs[1].shape[0] for x in others)
    ):
        return None
    (number,) = numbers
    inputs: list[Any] = [gathers[k].inputs[0] if k in gathers else x for k, x in enumerate(leaf.inputs)]
    loop = replace(
        leaf.loop,
        rows=number.dtype,
        inputs=tuple(x._replace(gathered=k in gathers) for k, x in enumerate(leaf.loop.inputs)),
        outputs=tuple(y._replace(updates=k) for y, k in zip(leaf.loop.outputs, updates, strict=True)),
    )
    equations = [*gathers.values(), *leaf.equations, *scatters]
    outputs = tuple(e.outputs[0] for e in scatters)
    return verified(replace(leaf, loop=loop, equations=equations, inputs=(*inputs, number), outputs=outputs))
