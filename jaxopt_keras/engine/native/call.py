"""The backend for CPUs: equal loops as one call of a function in C, which `build.py` compiles."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxopt_keras.engine.native import build
from jaxopt_keras.engine.native.ir import Value
from jaxopt_keras.engine.native.loop import Leaf, refusal
from jaxopt_keras.engine.native.phase import Phase
from jaxopt_keras.engine.native.render_c import render_c

# Leaves in one call: XLA's time to pair the memory of inputs and outputs grows faster than their number.
AT_ONCE = 128


class Call(Phase):
    """One loop in C over several leaves, each with its own arrays.

    Attributes:
        columns: for each scalar of the loop its name, or the tuple of its names in the leaves.
    """

    def __init__(self, leaves: list[Leaf], aliases: list[dict[int, int]], writes: set[Value], strict: bool) -> None:
        super().__init__(leaves, aliases, writes, strict)
        columns = zip(*(leaf.scalars for leaf in leaves), strict=True)
        self.columns: list[Any] = [x[0] if len({*x}) == 1 else x for x in columns]
        self.scalars = [*dict.fromkeys(self.columns)]
        self.results = [*self.outputs, *self.written, *self.rows]

    def native(self, *operands: Any) -> list[Any]:
        """The results by the compiled loop.

        Raises:
            Unavailable: if it cannot be compiled.
        """
        known = dict(zip(self.operands, operands, strict=True))
        leaf, count = self.leaves[0], len(self.leaves)
        results = self.shapes()
        if leaf.totals:
            double = any(x.dtype == "float64" for x in leaf.totals)
            results += [jax.ShapeDtypeStruct((count,), jnp.float64 if double else jnp.float32)] * len(leaf.totals)
        heads = [self._words(known)]
        if self.buffers:
            heads += [jnp.asarray(self._table()), *(known[buffer] for buffer in self.buffers)]
        target = build.target(render_c(leaf.loop))
        call = jax.ffi.ffi_call(target, results, input_output_aliases=self.pairs(2, len(heads)))
        return [*call(*heads, *operands[len(self.scalars) + len(self.buffers) :])]

    def _words(self, known: dict[Any, Any]) -> Any:
        """The scalars as words: one row if they are the same for all leaves, otherwise a row for each leaf."""
        columns = [words(known[x]) for x in self.columns] or [jnp.zeros((1, 1), jnp.uint32)]
        count = max(x.shape[0] for x in columns)
        return jnp.concatenate([jnp.broadcast_to(x, (count, x.shape[1])) for x in columns], axis=1)

    def _table(self) -> Any:
        """For each leaf its number of elements, and where its arrays start in the packed buffers."""
        starts = [[f.places[x].start for x in (*f.inputs, *f.outputs) if x in f.places] for f in self.leaves]
        return np.array([[f.count, *own] for f, own in zip(self.leaves, starts, strict=True)], np.uint32)


def words(x: Any) -> Any:
    """A number, or an array of numbers, as rows of words of 32 bits."""
    if x.dtype.itemsize < 8 and x.dtype != jnp.uint32:
        x = x.astype(jnp.float32 if jnp.issubdtype(x.dtype, jnp.floating) else jnp.int32)
    return lax.bitcast_convert_type(x, jnp.uint32).reshape(x.size, -1)


class InC:
    """Runs equal loops together."""

    has_guards = False

    def unavailable(self) -> str:
        return build.unavailable()

    def refuses(self, leaf: Leaf) -> str:
        return refusal(render_c, leaf.loop)

    def parts(self, phase: Phase, numbers: list[int]) -> Iterator[Call]:
        groups: dict[Any, list[int]] = {}
        for i in numbers:
            leaf = phase.leaves[i]
            groups.setdefault((leaf.loop, *leaf.buffers), []).append(i)
        for mine in groups.values():
            for k in range(0, len(mine), AT_ONCE):
                yield Call.part(phase, mine[k : k + AT_ONCE])
