"""The loops that can run at the same time, as a JAX primitive: a backend runs them, or XLA runs their equations.

Under `vmap` and `grad` there is no loop of the batched or differentiated form, so XLA runs those of the equations.
`backends.py` decides where a backend runs a phase.
"""

import functools
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import ad, batching

from jaxopt_keras.engine.native.ir import Equation, Value, evaluate, is_scalar
from jaxopt_keras.engine.native.known import Known
from jaxopt_keras.engine.native.loop import Leaf, kind_of
from jaxopt_keras.engine.native.prologue import Column, Columns, Prologue
from jaxopt_keras.packing.trees import Primitive, concatenate


class Joint(NamedTuple):
    """Totals of several arrays, combined to one scalar."""

    equation: Equation  # combines two of them
    totals: tuple[Value, ...]
    value: Value

    @property
    def reduction(self) -> str:
        """The reduction of an array that does the same to its elements."""
        return {"add": "reduce_sum"}.get(self.equation.name, f"reduce_{self.equation.name}")

    def of(self, numbers: Iterable[Any]) -> Any:
        return functools.reduce(lambda x, y: self.equation.run([x, y])[0], numbers)


class Phase:
    """Loops that do not depend on one another, each over its own array.

    Operands: the scalars, or with a prologue what it reads; the packed buffers; the other inputs of each leaf. Results:
    the outputs of each leaf that are not in packed buffers, the packed buffers that are written, the totals of each
    leaf, the joints and collected totals, then the scalars of the new state.

    Args:
        aliases: for each leaf: input -> output that may take its memory.
        writes: packed buffers that some loop writes. They pass through each call that reads them, uncopied.
        strict: raise an error where the loops cannot be native.
    """

    guard: Value | None = None  # a flag, the first scalar: without it arrays keep their numbers

    def __init__(self, leaves: list[Leaf], aliases: list[dict[int, int]], writes: set[Value], strict: bool) -> None:
        self.leaves, self.aliases, self.writes, self.strict = leaves, aliases, writes, strict
        self.scalars = [*dict.fromkeys(x for leaf in self.leaves for x in leaf.scalars)]
        self.buffers = [*dict.fromkeys(x for leaf in self.leaves for x in leaf.buffers)]
        self.written = [buffer for buffer in self.buffers if buffer in writes]
        # Of each leaf: the scalars of leaves with equal loops, and its number among these. Empty in parts, except those
        # for GPUs (`Launch.read_ends`).
        self.prologues: dict[Leaf, tuple[Prologue, int]] = {}
        self.last: Prologue | None = None  # the scalars of the new state
        self.old: dict[Value, Value] = {}  # those of the old state whose memory they may take
        self.outputs = [x for f in self.leaves for x in f.unpacked(f.outputs)]
        self.totals = [x for leaf in self.leaves for x in leaf.totals]
        self.results: list[Any] = [*self.outputs, *self.written, *self.totals]
        self.joints: list[Joint] = []  # of the whole phase; its parts have none
        self.collected: list[tuple[Value, ...]] = []  # likewise: totals that are also returned as an array

    @property
    def operands(self) -> list[Value]:
        return [*self.scalars, *self.buffers, *(x for f in self.leaves for x in f.unpacked(f.inputs))]

    def prepare(self, columns: Columns) -> None:
        """Compute the scalars of loops from what is known before the phase."""
        groups: dict[Any, list[Leaf]] = {}
        for leaf in self.leaves:
            groups.setdefault(kind_of(leaf.loop), []).append(leaf)
        for leaves in groups.values():
            rows = zip(*(leaf.scalars for leaf in leaves), strict=True)
            prologue = Prologue([columns.of(scalars) for scalars in rows])
            self.prologues |= {leaf: (prologue, k) for k, leaf in enumerate(leaves)}
        self.scalars = [x.name for x in self.ends]

    def finish(self, columns: Columns, old: dict[Value, Value]) -> None:
        """Return scalars of the new state too, given with those of the old one."""
        if old:
            self.last, self.old = Prologue([columns.of((x,)) for x in old]), old
        self.scalars = [x.name for x in self.ends]
        self.results += old

    @property
    def computed(self) -> list[Prologue]:
        """The prologues, and the scalars of the new state."""
        return [*dict.fromkeys(x for x, _ in self.prologues.values()), *([self.last] if self.last else [])]

    @property
    def ends(self) -> list[Column]:
        """The columns that these read."""
        return [*dict.fromkeys(x for each in self.computed for x in each.ends)]

    def guard_by(self, flag: Value) -> None:
        """Run the loops only if `flag` is set. Otherwise arrays that take the memory of others keep the numbers."""
        self.guard = flag
        self.scalars.insert(0, flag)

    @property
    def replaced(self) -> dict[Value, Value]:
        """Results and the inputs whose memory they take."""
        found = {}
        for leaf, aliases in zip(self.leaves, self.aliases, strict=True):
            inputs, outputs = leaf.unpacked(leaf.inputs), leaf.unpacked(leaf.outputs)
            found |= {outputs[k]: inputs[i] for i, k in aliases.items()}
        return found | self.old

    def add(self, joint: Joint) -> None:
        """Return one more scalar."""
        self.joints.append(joint)
        self.results.append(joint.value)

    def collect(self, totals: tuple[Value, ...]) -> None:
        """Return totals as an array too, whose name is the tuple of them."""
        if totals not in self.collected:
            self.collected.append(totals)
            self.results.append(totals)

    def return_totals_one_by_one(self) -> None:
        """Return no arrays of totals: leaves of one launch can have totals of several dtypes, or fewer than others."""
        names = [x if isinstance(x, tuple) else (x,) for x in self.results]
        self.results = [x for some in names for x in some if x is not None]

    @classmethod
    def part(cls, phase: "Phase", numbers: Sequence[int]) -> Self:
        """The leaves of `phase` with these numbers."""
        leaves, aliases = [phase.leaves[i] for i in numbers], [phase.aliases[i] for i in numbers]
        part = cls(leaves, aliases, phase.writes, phase.strict)
        if phase.guard is not None:
            part.guard_by(phase.guard)
        return part

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

    def named(self, operands: Any) -> Known:
        """The operands and the scalars by name."""
        known = Known(self.operands, operands)
        made: dict[Column, Any] = {}
        for prologue in self.computed:
            prologue.run(known, made)
        return known

    def _known(self, operands: Any) -> Known:
        """The operands by name, with the arrays in packed buffers."""
        known = self.named(operands)
        for leaf in self.leaves:
            packed = {x: leaf.places[x] for x in leaf.inputs if x in leaf.places}
            known |= {x: known[buffer][start : start + x.shape[0]] for x, (buffer, start) in packed.items()}
            known |= {x: known[y].reshape(x.shape) for x, y in leaf.written}
        return known

    def _results(self, known: dict[Any, Any]) -> list[Any]:
        """The results, with the new arrays in their packed buffers."""
        places = {x: leaf.places[x] for leaf in self.leaves for x in leaf.outputs if x in leaf.places}
        for buffer in self.written:
            arrays = {at.start: known[x] for x, at in places.items() if at.buffer is buffer}
            known[buffer] = self._if_guard(known, with_spans(known[buffer], arrays), known[buffer])
        if self.guard is not None:
            known |= {x: jnp.where(known[self.guard], known[x], known[old]) for x, old in self.replaced.items()}
        known |= {x.value: x.of(known[total] for total in x.totals) for x in self.joints}
        return [known[x] for x in self.results]

    def _if_guard(self, known: dict[Value, Any], new: Any, old: Any) -> Any:
        return new if self.guard is None else jnp.where(known[self.guard], new, old)

    # --- for the calls of backends --------------------------------------------------------------------------------

    @property
    def rows(self) -> list[tuple[Value | None, ...]]:
        """For each total of the loops those of all leaves."""
        return [*zip_longest(*(leaf.totals for leaf in self.leaves))]

    def shapes(self) -> list[jax.ShapeDtypeStruct]:
        """The shapes and dtypes of the arrays that a call writes."""
        return [jax.ShapeDtypeStruct(x.shape, x.aval.dtype) for x in (*self.outputs, *self.written)]

    def pairs(self, first_buffer: int, first_array: int) -> dict[int, int]:
        """Which result of a call takes the memory of which operand.

        Args:
            first_buffer: the number of the first packed buffer among the operands of the call.
            first_array: the number of the first other array.
        """
        pairs: dict[int, int] = {}
        reads, writes = first_array, 0
        for leaf, aliases in zip(self.leaves, self.aliases, strict=True):
            pairs |= {reads + into: writes + out for into, out in aliases.items()}
            reads, writes = reads + len(leaf.unpacked(leaf.inputs)), writes + len(leaf.unpacked(leaf.outputs))
        return pairs | {first_buffer + self.buffers.index(x): writes + k for k, x in enumerate(self.written)}


def with_spans(whole: Any, arrays: dict[int, Any]) -> Any:
    """A flat array with some spans replaced by `arrays`, given by their starts."""
    pieces, end = [], 0
    for start in sorted(arrays):
        pieces += [whole[end:start], arrays[start]]
        end = start + arrays[start].shape[0]
    return concatenate([*pieces, whole[end:]])


phase_p = Primitive("jaxopt_keras_loops")
phase_p.multiple_results = True


def run(phase: Phase, *operands: Any) -> list[Any]:
    return phase_p.bind(*operands, phase=phase)


@phase_p.def_impl
def _(*operands: Any, phase: Phase) -> list[Any]:
    return phase.reference(*operands)


@phase_p.def_abstract_eval
def _(*operands: Any, phase: Phase) -> list[Any]:
    shape = lambda totals: totals[0].aval.update(shape=(len(totals),))
    return [shape(x) if isinstance(x, tuple) else x.aval for x in phase.results]


def _jvp(primals: Any, tangents: Any, phase: Phase) -> Any:
    return jax.jvp(phase.reference, tuple(primals), tuple(ad.instantiate_zeros(t) for t in tangents))


def _batched(operands: Any, axes: Any, phase: Phase) -> Any:
    is_one = all(axis is None for axis in axes[: len(phase.scalars)])
    new = {*phase.last.values} if phase.last and is_one else {}
    out = [None if x in new else 0 for x in phase.results]
    return jax.vmap(phase.reference, axes, out)(*operands), out


ad.primitive_jvps[phase_p] = _jvp
batching.primitive_batchers[phase_p] = _batched
