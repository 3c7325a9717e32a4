"""The JAX primitive for a call of loops: the compiled loop on one CPU, otherwise the equations that it came from.

XLA cannot split an opaque call over several devices and would gather the arrays. Under `vmap` and `grad` there is no
loop of the batched or differentiated form. An exported program must run elsewhere.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.interpreters import ad, batching, mlir

from jaxopt_keras.engine.native import build
from jaxopt_keras.engine.native.c_ops import type_of
from jaxopt_keras.engine.native.ir import Value, evaluate, is_scalar
from jaxopt_keras.engine.native.loop import Leaf
from jaxopt_keras.engine.native.render_c import render_c
from jaxopt_keras.packing.trees import Primitive, concatenate


class Call:
    """One loop over several leaves, each with its own arrays.

    Operands: the scalars, the packed buffers, then the other inputs of each leaf. Results: the outputs of each leaf
    that are not in packed buffers, the packed buffers that are written, then the totals of each leaf.

    Args:
        aliases: for each leaf: input -> output that may take its memory.
        writes: packed buffers that some loop writes. They pass through each call that reads them, uncopied.
        strict: raise an error where the loop cannot be native.
    """

    def __init__(self, leaves: list[Leaf], aliases: list[dict[int, int]], writes: set[Value], strict: bool) -> None:
        self.leaves, self.aliases, self.strict = leaves, aliases, strict
        self.source = render_c(leaves[0].loop)
        self.scalars = [*dict.fromkeys(x for leaf in self.leaves for x in leaf.scalars)]
        self.buffers = self.leaves[0].buffers
        self.written = [buffer for buffer in self.buffers if buffer in writes]
        self.operands = [*self.scalars, *self.buffers, *(x for f in self.leaves for x in f.unpacked(f.inputs))]
        self.outputs = [x for f in self.leaves for x in f.unpacked(f.outputs)]
        self.totals = [x for leaf in self.leaves for x in leaf.totals]
        self.results = [*self.outputs, *self.written, *self.totals]

    def reference(self, *operands: Any) -> list[Any]:
        """The results by the equations, through XLA."""
        known = self._known(operands)
        for leaf in self.leaves:
            evaluate(leaf.equations, known)
        return self._results(known)

    def in_two_passes(self, *operands: Any) -> list[Any]:
        """The results of `reference`, with the scales of blocks computed in a pass of their own.

        In one pass XLA would write the new slots to memory in float32, between the scales and the quantization: for two
        int8 slots a GPU would move 36 bytes for each parameter, where two passes move 22. The barriers keep XLA from
        merging the passes.
        """
        known = self._known(operands)

        def hold(*values: Value) -> None:
            known.update(zip(values, lax.optimization_barrier([known[x] for x in values]), strict=True))

        for leaf in self.leaves:
            scales = [e for e in leaf.equations if e.name == "reduce_max" and not is_scalar(e.outputs[0])]
            if scales:
                # The scalars too: one of them may be a norm, from an earlier pass.
                hold(*leaf.inputs, *(x for x in leaf.scalars if jnp.issubdtype(x.dtype, jnp.floating)))
                evaluate(leaf.equations, known)
                hold(*leaf.inputs, *(e.outputs[0] for e in scales))
            evaluate([e for e in leaf.equations if e not in scales], known)
        return self._results(known)

    def _known(self, operands: Any) -> dict[Value, Any]:
        """The operands by name, with the arrays in packed buffers."""
        known = dict(zip(self.operands, operands, strict=True))
        for leaf in self.leaves:
            packed = {x: leaf.places[x] for x in leaf.inputs if x in leaf.places}
            known |= {x: known[buffer][start : start + x.shape[0]] for x, (buffer, start) in packed.items()}
        return known

    def _results(self, known: dict[Value, Any]) -> list[Any]:
        """The results, with the new arrays in their packed buffers."""
        places = {x: leaf.places[x] for leaf in self.leaves for x in leaf.outputs if x in leaf.places}
        for buffer in self.written:
            arrays = {at.start: known[x] for x, at in places.items() if at.buffer is buffer}
            known[buffer] = replaced(known[buffer], arrays)
        return [known[x] for x in self.results]

    def native(self, *operands: Any) -> list[Any]:
        """The results by the compiled loop."""
        known = dict(zip(self.operands, operands, strict=True))
        leaf, count = self.leaves[0], len(self.leaves)
        results = [jax.ShapeDtypeStruct(x.shape, x.aval.dtype) for x in (*self.outputs, *self.written)]
        if leaf.totals:
            double = any(x.dtype == "float64" for x in leaf.totals)
            results.append(jax.ShapeDtypeStruct((count, len(leaf.totals)), jnp.float64 if double else jnp.float32))
        heads = [self._words(known)]
        if self.buffers:
            heads += [jnp.asarray(self._table()), *(known[buffer] for buffer in self.buffers)]
        reads, writes = len(leaf.unpacked(leaf.inputs)), len(leaf.unpacked(leaf.outputs))
        aliases = {
            len(heads) + i * reads + into: i * writes + out
            for i, pairs in enumerate(self.aliases)
            for into, out in pairs.items()
        }
        aliases |= {2 + self.buffers.index(buffer): len(self.outputs) + k for k, buffer in enumerate(self.written)}
        call = jax.ffi.ffi_call(build.target(self.source), results, input_output_aliases=aliases)
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

    def _words(self, scalars: dict[Value, Any]) -> Any:
        """The scalars as words: one row if they are the same for all leaves, otherwise a row for each leaf."""
        columns = [*zip(*(leaf.scalars for leaf in self.leaves), strict=True)]
        shared = all(len(set(column)) == 1 for column in columns)
        count = 1 if shared else len(self.leaves)
        rows = [jnp.zeros((count, 0), jnp.uint32)]
        for column in columns:
            if len(set(column)) == 1:
                width = type_of(column[0].dtype).words
                rows.append(jnp.broadcast_to(words(scalars[column[0]]), (count, width)))
            else:
                # In one dimension XLA sees that consecutive slices of an array, concatenated, are that array.
                rows.append(concatenate([words(scalars[x]) for x in column]).reshape(count, -1))
        return jnp.concatenate(rows, axis=1) if columns else jnp.zeros((1, 1), jnp.uint32)


def replaced(whole: Any, arrays: dict[int, Any]) -> Any:
    """A flat array with some spans replaced by `arrays`, given by their starts."""
    pieces, end = [], 0
    for start in sorted(arrays):
        pieces += [whole[end:start], arrays[start]]
        end = start + arrays[start].shape[0]
    return concatenate([*pieces, whole[end:]])


def words(x: Any) -> Any:
    """A scalar as words of 32 bits."""
    if x.dtype.itemsize == 8:
        return lax.bitcast_convert_type(x, jnp.uint32).reshape(2)
    wide = jnp.float32 if jnp.issubdtype(x.dtype, jnp.floating) else jnp.int32
    return lax.bitcast_convert_type(x if x.dtype == jnp.uint32 else x.astype(wide), jnp.uint32).reshape(1)


loops_p = Primitive("jaxopt_keras_loops")
loops_p.multiple_results = True


def run(call: Call, *operands: Any) -> list[Any]:
    return loops_p.bind(*operands, call=call)


@loops_p.def_impl
def _(*operands: Any, call: Call) -> list[Any]:
    return call.reference(*operands)


@loops_p.def_abstract_eval
def _(*operands: Any, call: Call) -> list[Any]:
    return [x.aval for x in call.results]


def _jvp(primals: Any, tangents: Any, call: Call) -> Any:
    return jax.jvp(call.reference, tuple(primals), tuple(ad.instantiate_zeros(t) for t in tangents))


def _batched(operands: Any, axes: Any, call: Call) -> Any:
    out = jax.vmap(call.reference, axes)(*operands)
    return out, [0] * len(out)


ad.primitive_jvps[loops_p] = _jvp
batching.primitive_batchers[loops_p] = _batched


def _lowered(context: Any, *operands: Any, call: Call) -> Any:
    reason = against(context.module_context, call.source)
    if reason and call.strict:
        raise build.Unavailable(f'`engine="native"` cannot run here: {reason}. Use `engine="auto"`.')
    on_gpu = set(context.module_context.platforms) <= {"cuda", "rocm"}
    function = call.native if not reason else call.in_two_passes if on_gpu else call.reference
    return mlir.lower_fun(function, multiple_results=True)(context, *operands)


def against(module: Any, source: str) -> str:
    """Why a program cannot call the compiled `source`; "" where it can."""
    if tuple(module.platforms) != ("cpu",):
        return f"it is for {', '.join(module.platforms)}"
    if module.lowering_parameters.for_export:
        return "it is exported, to run elsewhere"
    where = module.axis_context
    devices = getattr(where, "num_devices", None)
    if devices is None and set(where.manual_axes) == set(where.mesh.axis_names):  # `shard_map`: each runs its own part
        devices = 1
    if devices != 1:
        return "it is for several devices"
    try:
        build.target(source)
    except build.Unavailable as error:
        return build.fallback(error)
    return ""


mlir.register_lowering(loops_p, _lowered)
