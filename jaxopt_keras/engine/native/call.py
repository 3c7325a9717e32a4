"""The backend for CPUs: equal loops as one call of a function in C, which `build.py` compiles."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_keras.engine.native import build
from jaxopt_keras.engine.native.loop import Leaf, refusal
from jaxopt_keras.engine.native.phase import Phase
from jaxopt_keras.engine.native.render_c import render_c

# Leaves in one call: XLA's time to pair the memory of inputs and outputs grows faster than their number.
AT_ONCE = 128


class Call(Phase):
    """One loop in C over several leaves, each with its own arrays."""

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
            results.append(jax.ShapeDtypeStruct((count, len(leaf.totals)), jnp.float64 if double else jnp.float32))
        heads = [self.words(known)]
        if self.buffers:
            heads += [jnp.asarray(self._table()), *(known[buffer] for buffer in self.buffers)]
        target = build.target(render_c(leaf.loop))
        call = jax.ffi.ffi_call(target, results, input_output_aliases=self.pairs(2, len(heads)))
        out = call(*heads, *operands[len(self.scalars) + len(self.buffers) :])
        totals = [
            out[-1][i, k].astype(x.aval.dtype).reshape(x.shape)
            for i, f in enumerate(self.leaves)
            for k, x in enumerate(f.totals)
        ]
        return [*out[: len(self.outputs) + len(self.written)], *totals]

    def _table(self) -> Any:
        """For each leaf its number of elements, and where its arrays start in the packed buffers."""
        starts = [[f.places[x].start for x in (*f.inputs, *f.outputs) if x in f.places] for f in self.leaves]
        return np.array([[f.count, *own] for f, own in zip(self.leaves, starts, strict=True)], np.uint32)


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
