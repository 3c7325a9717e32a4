"""The loops as a JAX primitive: native where it can be, and everywhere else the equations that the loops came from.

It is native on a CPU and one device. On many devices XLA could not split an opaque call and would gather the arrays;
under `vmap` and `grad` there is no loop of the batched or differentiated form; an exported program must run elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.interpreters import ad, batching, mlir

from jaxopt_keras.engine.native import build
from jaxopt_keras.engine.native.emit import Loop
from jaxopt_keras.engine.native.trace import Equation, Value, evaluated, is_scalar
from jaxopt_keras.engine.native.vocabulary import type_of
from jaxopt_keras.packing.trees import Primitive, concatenated


@dataclass(eq=False)
class Call:
    """One loop over several leaves, in which equal places have the same meaning.

    Operands: `scalars`, the pools, then the inputs of each leaf that do not lie in a pool. Results: the outputs of each
    leaf that do not, the pools that move, then the sums of each leaf.
    """

    leaves: list[Loop]
    equations: list[list[Equation]]  # what each leaf computes
    aliases: list[dict[int, int]]  # of each leaf: input -> output that may have its memory
    moves: set[Value]  # the pools that some loop writes into. All that touch one stand in a row, so that none is copied
    strict: bool  # an error where it cannot be native

    def __post_init__(self) -> None:
        self.scalars = [*dict.fromkeys(x for leaf in self.leaves for x in leaf.scalars)]
        self.pools = self.leaves[0].pools
        self.moved = [pool for pool in self.pools if pool in self.moves]
        self.operands = [*self.scalars, *self.pools, *(x for f in self.leaves for x in f.apart(f.inputs))]
        self.outputs = [x for f in self.leaves for x in f.apart(f.outputs)]
        self.sums = [x for leaf in self.leaves for x in leaf.sums]
        self.results = [*self.outputs, *self.moved, *self.sums]

    def reference(self, *operands: Any) -> list[Any]:
        """The same through XLA."""
        known = self._known(operands)
        for equations in self.equations:
            evaluated(equations, known)
        return self._results(known)

    def in_two_passes(self, *operands: Any) -> list[Any]:
        """As `reference`, where blocks have scales: these first, then everything anew from the inputs.

        XLA would rather keep the new slots in float32 between the two: for two int8 slots a GPU would move 36 bytes for
        each parameter, where two passes move 22. The barrier keeps it from merging them again.
        """
        known = self._known(operands)

        def hold(*values: Value) -> None:
            known.update(zip(values, lax.optimization_barrier([known[x] for x in values]), strict=True))

        for leaf, equations in zip(self.leaves, self.equations, strict=True):
            scales = [e for e in equations if e.name == "reduce_max" and not is_scalar(e.outputs[0])]
            if scales:
                # Nor with an earlier pass for a norm, which is among the scalars.
                hold(*leaf.inputs, *(x for x in leaf.scalars if jnp.issubdtype(x.dtype, jnp.floating)))
                evaluated(equations, known)
                hold(*leaf.inputs, *(e.outputs[0] for e in scales))
            evaluated([e for e in equations if e not in scales], known)
        return self._results(known)

    def _known(self, operands: Any) -> dict[Value, Any]:
        """The operands by name, and what lies in the pools."""
        known = dict(zip(self.operands, operands, strict=True))
        for leaf in self.leaves:
            inside = {x: leaf.places[x] for x in leaf.inputs if x in leaf.places}
            known |= {x: known[pool][start : start + x.shape[0]] for x, (pool, start) in inside.items()}
        return known

    def _results(self, known: dict[Value, Any]) -> list[Any]:
        """The results by what is known, the pools with their new parts."""
        places = {x: leaf.places[x] for leaf in self.leaves for x in leaf.outputs if x in leaf.places}
        for pool in self.moved:
            known[pool] = replaced(known[pool], {at.start: known[x] for x, at in places.items() if at.pool is pool})
        return [known[x] for x in self.results]

    def native(self, *operands: Any) -> list[Any]:
        """The compiled loop."""
        known = dict(zip(self.operands, operands, strict=True))
        leaf, count = self.leaves[0], len(self.leaves)
        results = [jax.ShapeDtypeStruct(x.shape, x.aval.dtype) for x in (*self.outputs, *self.moved)]
        if leaf.sums:
            double = any(x.dtype == "float64" for x in leaf.sums)
            results.append(jax.ShapeDtypeStruct((count, len(leaf.sums)), jnp.float64 if double else jnp.float32))
        heads = [self._rows(known)]
        if self.pools:
            heads += [jnp.asarray(self._table()), *(known[pool] for pool in self.pools)]
        reads, writes = len(leaf.apart(leaf.inputs)), len(leaf.apart(leaf.outputs))
        places = {
            len(heads) + i * reads + into: i * writes + out
            for i, pairs in enumerate(self.aliases)
            for into, out in pairs.items()
        }
        places |= {2 + self.pools.index(pool): len(self.outputs) + k for k, pool in enumerate(self.moved)}
        call = jax.ffi.ffi_call(build.target(leaf.source), results, input_output_aliases=places)
        out = call(*heads, *operands[len(self.scalars) + len(self.pools) :])
        sums = [
            out[-1][i, k].astype(x.aval.dtype).reshape(x.shape)
            for i, f in enumerate(self.leaves)
            for k, x in enumerate(f.sums)
        ]
        return [*out[: len(self.outputs) + len(self.moved)], *sums]

    def _table(self) -> Any:
        """For each leaf its number of elements, and where its arrays start in their pools."""
        rows = []
        for leaf in self.leaves:
            starts = [leaf.places[x].start for x in (*leaf.inputs, *leaf.outputs) if x in leaf.places]
            rows.append([leaf.count, *starts])
        return np.array(rows, np.uint32)

    def _rows(self, scalars: dict[Value, Any]) -> Any:
        """The scalars as words: one row for all leaves where they are the same, or one for each."""
        columns = [*zip(*(leaf.scalars for leaf in self.leaves), strict=True)]
        shared = all(len(set(column)) == 1 for column in columns)
        count = 1 if shared else len(self.leaves)
        rows = [jnp.zeros((count, 0), jnp.uint32)]
        for column in columns:
            if len(set(column)) == 1:
                rows.append(jnp.broadcast_to(words(scalars[column[0]]), (count, type_of(column[0]).words)))
            else:
                # In one dimension, where XLA sees that parts of a row in a row are that row.
                rows.append(concatenated([words(scalars[x]) for x in column]).reshape(count, -1))
        return jnp.concatenate(rows, axis=1) if columns else jnp.zeros((1, 1), jnp.uint32)


def replaced(whole: Any, parts: dict[int, Any]) -> Any:
    """A flat array with other parts, given by where they start."""
    pieces, end = [], 0
    for start in sorted(parts):
        pieces += [whole[end:start], parts[start]]
        end = start + parts[start].shape[0]
    return concatenated([*pieces, whole[end:]])


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
    reason = against(context.module_context, call.leaves[0].source)
    if reason and call.strict:
        raise build.Unavailable(f'`engine="native"` cannot run here: {reason}. Use `engine="auto"`.')
    on_gpu = set(context.module_context.platforms) <= {"cuda", "rocm"}
    xla = call.in_two_passes if on_gpu else call.reference
    function: Callable[..., Any] = xla if reason else call.native
    return mlir.lower_fun(function, multiple_results=True)(context, *operands)


def against(module: Any, source: str) -> str:
    """Why a program cannot call the compiled `source`; "" where it can."""
    reason = _against(module)
    if not reason:
        try:
            build.target(source)
        except build.Unavailable as error:
            reason = build.fallback(error)
    return reason


def _against(module: Any) -> str:
    if tuple(module.platforms) != ("cpu",):
        return f"it is for {', '.join(module.platforms)}"
    if module.lowering_parameters.for_export:
        return "it is exported, to run elsewhere"
    where = module.axis_context
    devices = getattr(where, "num_devices", None)
    if devices is None and set(where.manual_axes) == set(where.mesh.axis_names):  # `shard_map`: each runs its own part
        return ""
    return "" if devices == 1 else "it is for several devices"


mlir.register_lowering(loops_p, _lowered)
