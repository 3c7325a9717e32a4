"""A step of one matrix as a Pallas kernel for a TPU, made from the step's own equations.

Those that depend on arrays run inside, on tiles, and those on numbers run before it. So any element-wise rule has a
kernel, with its masters and rounding, and the random bits of rounding are those of XLA's step. On other platforms than
a TPU it is interpreted, which is slow, and for tests.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxopt_keras.engine.native.ir import INDEX, Constant, Equation, Trace, Value, evaluate, trace_of
from jaxopt_keras.engine.one_pass import Grid
from jaxopt_keras.language.places import platform
from jaxopt_keras.storage.blockwise import Blocks


def run(function: Callable[..., Any], arrays: Any, numbers: Any, grid: Grid) -> Any:
    """Return `function(arrays, numbers)`, whose result has the structure of `arrays` without its last element.

    Args:
        arrays: a tuple of pytrees of arrays of the matrix's shape, and of `Blocks`; the last one is read only.
        numbers: a pytree of scalars.
    """
    small = jax.tree.map(lambda x: _tile(x, grid), arrays, is_leaf=lambda x: isinstance(x, Blocks))
    trace, _ = trace_of(function, small, numbers)
    leaves = jax.tree.leaves(arrays)
    inner, outer = _parted(trace, {*trace.inputs[: len(leaves)]}, grid)
    known = dict(zip(trace.inputs, [*leaves, *jax.tree.leaves(numbers)], strict=True)) | trace.constants
    evaluate(outer, known)
    made = {x for e in inner for x in e.outputs} | {*trace.inputs[: len(leaves)]}
    used = [x for e in inner for x in e.values] + [x for x in trace.outputs if isinstance(x, Value)]
    scalars = [x for x in dict.fromkeys(used) if x not in made]
    given = [_word(known[x]) for x in scalars]
    kernel = functools.partial(_kernel, trace, inner, scalars, len(leaves), grid)
    specs = [_spec(x, grid) for x in leaves]
    kept = len(trace.outputs)
    out = pl.pallas_call(
        kernel,
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves[:kept]],
        grid=(grid.rows // (grid.block * grid.blocks), grid.columns // grid.width),
        in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), *specs],
        out_specs=specs[:kept],
        input_output_aliases={i + 1: i for i in range(kept)},
        interpret=platform() != "tpu",
    )(jnp.stack(given) if given else jnp.zeros(1, jnp.int32), *leaves)
    return jax.tree.unflatten(jax.tree.structure(arrays[:-1]), out)


def _tile(x: Any, grid: Grid) -> Any:
    """Return the shape of one row of blocks of an array, as wide as a tile."""
    if isinstance(x, Blocks):
        return dataclasses.replace(x, codes=_tile(x.codes, grid), scales=_tile(x.scales, grid), length=grid.block)
    rows = 1 if x.shape[0] != grid.rows else grid.block
    return jax.ShapeDtypeStruct((rows, grid.width), x.dtype)


def _spec(x: Any, grid: Grid) -> Any:
    rows = grid.blocks * (1 if x.shape[0] != grid.rows else grid.block)
    return pl.BlockSpec((rows, grid.width), lambda i, j: (i, j))


def _parted(trace: Trace, arrays: set[Value], grid: Grid) -> tuple[list[Equation], list[Equation]]:
    """Part the equations into those on tiles and those on numbers."""
    inner, outer, inside = [], [], {*arrays}
    for e in trace.equations:
        large = any(x.aval.size >= grid.width for x in e.outputs)
        is_inner = large or e.name == INDEX or any(x in inside for x in e.values)
        (inner if is_inner else outer).append(e)
        inside |= {*e.outputs} if is_inner else set()
    return inner, outer


def _word(x: Array) -> Array:
    """Return a scalar as a word of 32 bits."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32).reshape(())
    return x.astype(jnp.int32).reshape(())


def _number(word: Array, aval: Any) -> Array:
    if jnp.issubdtype(aval.dtype, jnp.floating):
        number = lax.bitcast_convert_type(word, jnp.float32).astype(aval.dtype)
    else:
        number = word != 0 if aval.dtype == jnp.bool_ else word.astype(aval.dtype)
    return jnp.full(aval.shape, number) if aval.shape else number


def _kernel(trace: Trace, inner: list[Equation], scalars: list[Value], count: int, grid: Grid, words: Any, *refs: Any):
    """The kernel: each row of blocks of a tile after the other."""
    reads, writes = refs[:count], refs[count:]
    numbers = {x: _number(words[k], x.aval) for k, x in enumerate(scalars)}
    top, left = pl.program_id(0) * grid.block * grid.blocks, pl.program_id(1) * grid.width

    def at(q: Any, value: Any) -> Any:
        rows = value.shape[0]
        return pl.ds(pl.multiple_of(q * rows, rows), rows), slice(None)

    def row(q: Any, _: Any) -> None:
        inputs = trace.inputs[:count]
        known = numbers | {x: ref[at(q, x)] for x, ref in zip(inputs, reads, strict=True)}
        for e in inner:
            inputs = [x.value if isinstance(x, Constant) else known[x] for x in e.inputs]
            if e.name == INDEX:
                known[e.outputs[0]] = _index(e.outputs[0].shape, top + q * grid.block, left, grid)
            elif e.name in ("min", "max") and e.outputs[0].dtype == "uint32":
                known[e.outputs[0]] = _unsigned(e.name, *inputs)
            elif e.name == "is_finite":  # there is none for 16 bits
                known[e.outputs[0]] = lax.is_finite(inputs[0].astype(jnp.float32))
            else:
                evaluate([e], known)
        for x, ref in zip(trace.outputs, writes, strict=True):
            ref[at(q, x)] = jnp.asarray(x.value if isinstance(x, Constant) else known[x])

    lax.fori_loop(0, grid.blocks, lambda q, c: (row(q, c), c)[1], 0)


def _unsigned(name: str, x: Any, y: Any) -> Array:
    """Return the least or the greatest of unsigned numbers: in kernels only signed ones can be compared."""
    first, second = (lax.bitcast_convert_type(jnp.asarray(a, jnp.uint32), jnp.int32) for a in (x, y))
    is_less = (first ^ np.int32(-(2**31))) < (second ^ np.int32(-(2**31)))
    found = jnp.where(is_less, first, second) if name == "min" else jnp.where(is_less, second, first)
    return lax.bitcast_convert_type(found, jnp.uint32)


def _index(shape: tuple[int, ...], top: Any, left: Any, grid: Grid) -> Array:
    """Return the index of each element in the whole matrix."""
    row, column = (lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
    flat = (row + top) * np.int32(grid.columns) + (column + left)
    return lax.bitcast_convert_type(flat, jnp.uint32)
