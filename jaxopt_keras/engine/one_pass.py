"""A step over quantized slots as one kernel for a TPU: which arrays can have one, and the steps of the others.

XLA reads the codes and the gradient three times, since it needs all scales before the first code. A kernel
(`pallas_kernel.py`) holds a tile of whole blocks on the chip, and reads and writes each array once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import Array

from jaxopt_keras.engine.core import Layout, Slots
from jaxopt_keras.engine.stages.accumulate import without
from jaxopt_keras.engine.stages.clip import clip
from jaxopt_keras.language.options import Options
from jaxopt_keras.storage.blockwise import Blocks, foreign_blocks
from jaxopt_keras.storage.tiles import LANES, PACKED, SUBLANES, layout


class Grid(NamedTuple):
    """The division of a matrix into tiles of whole blocks."""

    rows: int
    columns: int
    block: int  # rows of a block
    blocks: int  # of a tile, below each other
    width: int  # columns of a tile


Update = Callable[..., tuple[list[Any], list[Slots], Slots]]


def in_one_pass(
    update: Update, options: Options, raw: list[Any], layout: Layout, gradients: list[Any], *rest: Any
) -> Any:
    """Return `update(layout, gradients, *rest)`, by a kernel for each array that can have one.

    Clips by norms read all gradients, and come first.

    Args:
        raw: the gradients before they were cast, and summed and scaled as the options say.
    """
    from jaxopt_keras.engine.pallas_kernel import run  # here, because Pallas takes long to import

    stored, slots, scalars, step, now, _ = rest
    hyper = now.hyper
    changed = options.gradient_accumulation_steps or options.axis_name is not None
    exact = not changed and not {"loss_scale_factor", "clipnorm", "global_clipnorm"} & hyper.keys()
    grids = [grid_of(options, *x) for x in zip(gradients, stored, slots, strict=True)]
    if "clipvalue" not in hyper and any(isinstance(grid, Grid) for grid in grids):
        gradients = clip(gradients, hyper)
        now = now._replace(hyper=without(hyper, "clipnorm", "global_clipnorm"))

    def some(indices: list[int]) -> Any:
        own = layout._replace(leaves=tuple(layout.leaves[i] for i in indices))
        return own, [gradients[i] for i in indices]

    others = [i for i, grid in enumerate(grids) if isinstance(grid, str)]
    kept = [[x[i] for i in others] for x in (stored, slots)]
    some_out, some_slots, moved = update(*some(others), *kept, scalars, step, now, True)
    found = dict(zip(others, zip(some_out, some_slots, strict=True), strict=True))
    for i, grid in enumerate(grids):
        if isinstance(grid, Grid):

            def one(arrays: Any, numbers: Any, i: int = i) -> Any:
                p, own, g = arrays
                out, new, _ = update(
                    some([i])[0], [g.astype(gradients[i].dtype)], [p], [own], *numbers, True, join=False
                )
                return out[0], new[0]

            g = raw[i] if exact else gradients[i]  # one of 16 bits is cast in the kernel
            found[i] = run(one, (stored[i], slots[i], g), (scalars, step, now), grid)
    return [found[i][0] for i in range(len(grids))], [found[i][1] for i in range(len(grids))], moved


def grid_of(options: Options, g: Any, p: Any, slots: Slots) -> Grid | str:
    """Return the tiles of a parameter with these slots, or why there are none."""
    if not isinstance(g, Array | jax.ShapeDtypeStruct) or options.constraints:
        return "no dense gradient" if not options.constraints else "a constraint of the whole array"
    if any(jax.typeof(p).sharding.spec):
        return "on several devices"
    stored = [x for x in slots.values() if isinstance(x, Blocks)]
    if not stored:
        return "no quantized slot"
    if p.ndim != 2 or layout(p.shape) != (0, 1):
        return "not a matrix that is stored row by row"
    (rows, columns), first = p.shape, stored[0].tiles
    if first is None:
        return foreign_blocks(stored[0], "tpu")
    if len({x.tiles for x in stored}) > 1:
        return "slots of different blocks"
    if first.axis != -2:
        return f"blocks of {first}"
    if any(x.code.name == "int4" for x in stored):
        return "codes of four bits"
    if rows % first.block or first.block % PACKED or columns % LANES:
        return "blocks that do not fill tiles"
    if any(x.shape != p.shape for x in slots.values()):
        return "a slot of another shape"
    count = rows // first.block
    blocks = SUBLANES if count % SUBLANES == 0 else count
    if blocks > 2 * SUBLANES:
        return "scales that do not fill tiles"
    return Grid(rows, columns, first.block, blocks, LANES)
