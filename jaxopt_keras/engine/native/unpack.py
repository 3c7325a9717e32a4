"""Unpacks a flat array on a CPU: one call in C copies its small arrays.

XLA compiles equal kernels once. But it fuses a slice into its reader, with the offset as a literal, so that kernels
that read different arrays are never equal: a loss over a thousand arrays in one buffer would compile two thousand
kernels. XLA cannot fuse into a call. Large arrays stay slices, since to copy them takes time in every step.
"""

import itertools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.interpreters import mlir

from jaxopt_keras.engine.native import build
from jaxopt_keras.engine.native.backends import against
from jaxopt_keras.packing.trees import split, unpack_p

SOURCE = pathlib.Path(__file__).with_name("unpack.c").read_text()
SMALL = 1024  # elements of an array that is copied. At 4096, a step that only squares them takes 15% longer
FEW = 16  # fewer small arrays compile quickly anyway


def copied(buffer: Array, sizes: tuple[int, ...]) -> list[Array]:
    """The arrays of a flat buffer, the small ones by one call."""
    spans = [*zip(itertools.accumulate(sizes[:-1], initial=0), sizes, strict=True)]
    small = [(start, size) for start, size in spans if size <= SMALL]
    results = [jax.ShapeDtypeStruct((size,), buffer.dtype) for _, size in small]
    places = np.array(small, np.int64).ravel() * buffer.dtype.itemsize
    pieces = iter(jax.ffi.ffi_call(build.target(SOURCE), results)(buffer, places=places))
    return [next(pieces) if size <= SMALL else lax.slice(buffer, [at], [at + size]) for at, size in spans]


def can_copy() -> bool:
    """Whether `unpack.c` can be compiled here."""
    try:
        build.target(SOURCE)
    except build.Unavailable as error:
        build.fallback(error)
        return False
    return True


def _lowered(context: Any, buffer: Any, sizes: tuple[int, ...]) -> Any:
    dtype = context.avals_in[0].dtype
    in_bytes = dtype == jnp.bfloat16 or getattr(dtype, "kind", "") in tuple("biufc")  # not four-bit types, nor keys
    many = in_bytes and sum(size <= SMALL for size in sizes) >= FEW
    native = many and not against(context.module_context) and can_copy()
    return mlir.lower_fun(copied if native else split, multiple_results=True)(context, buffer, sizes=sizes)


mlir.register_lowering(unpack_p, _lowered, platform="cpu")
