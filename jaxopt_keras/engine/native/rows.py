"""Loops over some rows of larger arrays: a gather before the arithmetic and a scatter after it, taken into the loop.

The update of the rows that a sparse gradient touches reads them where they lie and writes them back in place, each
once. Without this the rows of every array are copied out and in, one array after the other, by one thread.
"""

from dataclasses import replace
from typing import Any

from jax import lax

from jaxopt_keras.engine.native.emit import Loop
from jaxopt_keras.engine.native.trace import Equation, Value
from jaxopt_keras.engine.native.vocabulary import type_of


def is_gather(e: Equation) -> bool:
    """Whether it takes whole rows by their numbers, the nearest where there is no such row."""
    if e.name != "gather" or e.params["mode"] != lax.GatherScatterMode.CLIP:
        return False
    x, at = e.inputs[0].shape, e.params["dimension_numbers"]
    axes = at.offset_dims, at.collapsed_slice_dims, at.start_index_map, at.operand_batching_dims
    return (
        axes == _axes_of_rows(x)
        and tuple(e.params["slice_sizes"]) == (1, *x[1:])
        and e.inputs[1].shape == (e.outputs[0].shape[0], 1)
    )


def is_scatter(e: Equation) -> bool:
    """Whether it puts whole rows, each number at most once, and drops those that there are not."""
    if e.name != "scatter" or e.params["mode"] != lax.GatherScatterMode.FILL_OR_DROP:
        return False
    x, at = e.inputs[0].shape, e.params["dimension_numbers"]
    axes = at.update_window_dims, at.inserted_window_dims, at.scatter_dims_to_operand_dims, at.operand_batching_dims
    return (
        axes == _axes_of_rows(x) and e.params["unique_indices"] and e.inputs[2].shape == (e.inputs[1].shape[0], *x[1:])
    )


def _axes_of_rows(shape: tuple[int, ...]) -> Any:
    """The axes by which whole rows move: those within a row, the one dropped, the one numbered; of batches none."""
    return (*range(1, len(shape)),), (0,), (0,), ()


def in_place(
    loop: Loop, makers: dict[Value, Equation], readers: list[list[Equation | None]]
) -> tuple[Loop, list[Equation], list[Equation]] | None:
    """The loop on the rows where they lie, with the gathers and the scatters that it takes in.

    None if a result goes elsewhere than to rows of an array that the loop reads, by other numbers, or if it sums: it
    then needs the rows copied.

    Args:
        makers: the equations by what they make.
        readers: of each result: the equations that read it, and None if it is a result of the whole.
    """
    gathers = {k: e for k, x in enumerate(loop.inputs) if (e := makers.get(x)) is not None and is_gather(e)}
    if loop.sums or not gathers or any(len(some) != 1 for some in readers):
        return None
    scatters = [e for (e,) in readers if e is not None and is_scatter(e)]
    place = {e.inputs[0]: k for k, e in gathers.items()}
    aliases = {place[e.inputs[0]]: out for out, e in enumerate(scatters) if e.inputs[0] in place}
    indices = {e.inputs[1] for e in (*gathers.values(), *scatters)}
    values = [x for k, x in enumerate(loop.inputs) if k not in gathers]
    if (
        [e.inputs[2] for e in scatters] != loop.outputs
        or len(aliases) < len(scatters)
        or len(indices) > 1
        or any(0 in x.shape for x in (*place, *indices))
        or any(x.shape[0] != scatters[0].inputs[1].shape[0] for x in values)
    ):
        return None
    (numbers,) = indices
    inputs: list[Any] = [gathers[k].inputs[0] if k in gathers else x for k, x in enumerate(loop.inputs)]
    inputs.append(numbers)
    far = ", ".join(str(int(k in gathers)) for k in range(len(loop.inputs)))
    source = f"#define ROWS {type_of(numbers).memory}\n#define FAR_X {{ {far} }}\n{loop.source}"
    outputs = [e.outputs[0] for e in scatters]
    taken = replace(loop, source=source, inputs=inputs, outputs=outputs, aliases=aliases)
    return taken, [*gathers.values()], scatters
