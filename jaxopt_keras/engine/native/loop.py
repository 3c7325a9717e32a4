"""A loop over the elements of an array, as a value: which operations, on which operands, and where these are stored.

`fusion.py` builds loops from equations. `rows.py` and `packed_operands.py` rewrite them. Each of these passes ends with
`verified`. A renderer (`render_c.py`) writes the source code, once, at the end. A loop holds neither source code nor
arrays, so it is hashable, and arrays with equal loops share one call.

A value has one number for each element, for each block of elements (the scales of quantized slots) or for the whole
array. A reduction over a block ends a stage: its result is known one stage later.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from jaxopt_keras.engine.native.ir import PAIR, UNPAIR, Atom, Constant, Equation, Value, is_scalar

REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or")
# Scopes: how many elements share one number of a value.
ELEMENT, PAIRED, BLOCK, ARRAY = "element", "two elements in a byte", "block", "array"
READABLE = {ELEMENT: (ELEMENT, BLOCK, ARRAY), BLOCK: (BLOCK, ARRAY), PAIRED: (PAIRED,)}  # sources of a result, by scope


class Unsupported(Exception):
    """No loop can compute this. The message is the reason, which `Kernel.describe` shows."""


class Ref(NamedTuple):
    """A value in a loop: an input ("x"), a scalar ("s") or the result of an operation ("v"), by its number."""

    kind: str
    number: int


Operand = Ref | Constant


class Input(NamedTuple):
    """An array or a scalar that the loop reads."""

    dtype: str
    scope: str
    buffer: int | None = None  # the packed buffer that holds it; None: an array of its own
    gathered: bool = False  # read in the rows that the row numbers select; otherwise row by row


class Operation(NamedTuple):
    """result = name(*inputs), computed in `stage`."""

    name: str
    inputs: tuple[Operand, ...]
    dtype: str
    scope: str
    stage: int

    @property
    def known(self) -> int:
        """The first stage in which the result can be read."""
        return self.stage + (self.name in REDUCTIONS)


class Output(NamedTuple):
    """An array that the loop writes."""

    source: Operand
    dtype: str
    scope: str
    buffer: int | None = None
    updates: int | None = None  # the gathered input whose rows it overwrites


class Total(NamedTuple):
    """A reduction over the whole array."""

    name: str
    source: Operand
    dtype: str


@dataclass(frozen=True)
class Loop:
    """The computation for one array."""

    block: int | None  # elements in a block; None: there are no blocks
    inputs: tuple[Input, ...]
    scalars: tuple[Input, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[Output, ...]
    totals: tuple[Total, ...]
    rows: str | None = None  # the dtype of row numbers: the loop runs over those rows of larger arrays

    def value(self, x: Ref) -> Input | Operation:
        return {"x": self.inputs, "s": self.scalars, "v": self.operations}[x.kind][x.number]

    def dtype(self, x: Operand) -> str:
        return x.dtype if isinstance(x, Constant) else self.value(x).dtype

    def scope(self, x: Operand) -> str:
        return ARRAY if isinstance(x, Constant) else self.value(x).scope

    def is_in_rows(self, x: Input | Output) -> bool:
        """Whether an operand is a larger array, of which the loop runs over some rows."""
        return self.rows is not None and (isinstance(x, Output) or x.gathered)

    def known(self, x: Operand) -> int:
        """The first stage in which `x` can be read."""
        return self.operations[x.number].known if isinstance(x, Ref) and x.kind == "v" else 0

    def arrays(self, operation: Operation) -> list[Ref]:
        """The inputs of an operation that are not one number for the whole array."""
        return [x for x in operation.inputs if isinstance(x, Ref) and self.scope(x) != ARRAY]


@functools.lru_cache(maxsize=256)
def kind_of(loop: Loop) -> Loop:
    """The loop, wherever its arrays are: a kernel for GPUs finds that in a table."""
    inputs, outputs = (tuple(x._replace(buffer=None) for x in some) for some in (loop.inputs, loop.outputs))
    return replace(loop, inputs=inputs, outputs=outputs)


class Place(NamedTuple):
    """Where an array is in a packed buffer."""

    buffer: Value
    start: int  # in elements


@dataclass(frozen=True, eq=False)
class Leaf:
    """The loop of one array, and the values of a trace that are its operands and results, in the loop's order."""

    loop: Loop
    equations: list[Equation]  # what it computes
    count: int  # of elements
    inputs: tuple[Value, ...]  # with rows, the last one is the row numbers
    scalars: tuple[Value, ...]
    outputs: tuple[Value, ...]
    totals: tuple[Value, ...]
    written: tuple[tuple[Value, Value], ...] = ()  # a value, and the input that has it in another shape
    places: Mapping[Value, Place] = field(default_factory=dict)  # of the inputs and outputs in packed buffers

    @property
    def buffers(self) -> list[Value]:
        return [*dict.fromkeys(place.buffer for place in self.places.values())]

    def unpacked(self, values: Iterable[Value]) -> list[Value]:
        """Return the values that are arrays of their own."""
        return [x for x in values if x not in self.places]


# --- building ---------------------------------------------------------------------------------------------------------


def built(
    count: int, block: int | None, alias: dict[Value, Atom], equations: list[Equation], outputs: list[Value]
) -> Leaf:
    """The loop over `count` elements that computes `equations`, stores `outputs`, and returns reductions to scalars.

    Args:
        block: elements that share one number; None without blocks.
        alias: values that are other names for values.
        outputs: in any order. The loop has them as they are computed, so that it does not depend on what reads them.

    Raises:
        Unsupported: if four-bit values packed in bytes are read other than to unpack them, or if one number for each
            block is reduced.
    """
    values: dict[str, list[Value]] = {"x": [], "s": []}
    operations: list[Operation] = []
    refs: dict[Atom, Ref] = {}
    totals = [e for e in equations if is_total(e)]
    paired = {x for e in equations for x in pairs_of(e)}

    def base(x: Atom) -> Atom:
        while isinstance(x, Value) and x in alias:
            x = alias[x]
        return x

    def scope(x: Atom) -> str:
        if x in paired or is_scalar(x):
            return PAIRED if x in paired else ARRAY
        return BLOCK if block is not None and x.size * block == count else ELEMENT

    def ref(x: Atom) -> Operand:
        x = base(x)
        if isinstance(x, Constant):
            return x
        if x not in refs:
            kind = "s" if is_scalar(x) else "x"
            refs[x] = Ref(kind, len(values[kind]))
            values[kind].append(x)
        return refs[x]

    for e in equations:
        (out,) = e.outputs
        repeats = e.name == "reduce_sum" or not is_total(e)  # a loop meets such a number once for each element
        if e.name in REDUCTIONS and out not in alias and scope(e.inputs[0]) != ELEMENT and repeats:
            raise Unsupported(f"{e.name} of numbers for each block")
        if out in alias or is_total(e):
            continue
        if e.name == UNPAIR and (isinstance(base(e.inputs[0]), Constant) or base(e.inputs[0]) in refs):
            raise Unsupported("packed four-bit values that are also read otherwise")
        name, inputs = simplified(e, tuple(map(ref, e.inputs)))
        stage = max((operations[x.number].known for x in inputs if isinstance(x, Ref) and x.kind == "v"), default=0)
        refs[out] = Ref("v", len(operations))
        operations.append(Operation(name, inputs, out.dtype, scope(out), stage))
    found = [(ref(y), y) for y in outputs]
    outputs = [y for _, y in sorted(found, key=lambda x: x[0] if isinstance(x[0], Ref) else Ref("", 0))]
    stored = tuple(Output(ref(y), y.dtype, scope(y)) for y in outputs)
    reduced = tuple(Total(e.name, ref(e.inputs[0]), e.outputs[0].dtype) for e in totals)
    read, scalars = (tuple(Input(x.dtype, scope(x)) for x in some) for some in values.values())
    loop = Loop(block, read, scalars, tuple(operations), stored, reduced)
    results = tuple(outputs), tuple(e.outputs[0] for e in totals)
    return verified(Leaf(loop, equations, count, tuple(values["x"]), tuple(values["s"]), *results))


def simplified(e: Equation, inputs: tuple[Operand, ...]) -> tuple[str, tuple[Operand, ...]]:
    """The operation of an equation, without parameters: what changes the result is in the name or a constant input."""
    if e.name == "round":
        return ("rint" if int(e.params["rounding_method"]) == 1 else "round"), inputs
    if e.name == "integer_pow":
        return e.name, (*inputs, Constant.of(np.int32(e.params["y"])))
    if e.name == "pow" and isinstance(inputs[1], Constant) and float(inputs[1].value) == 0.5:
        return "sqrt", inputs[:1]
    return e.name, inputs


def refusal(render: Callable[[Loop], str], loop: Loop) -> str:
    """Why a renderer has no form for a loop; "" if it has one."""
    try:
        render(loop)
    except Unsupported as error:
        return str(error)
    return ""


def pairs_of(e: Equation) -> list[Any]:
    """The arrays of an equation that hold two elements in a byte."""
    return [*e.outputs] if e.name == PAIR else e.inputs if e.name == UNPAIR else []


def is_total(e: Equation) -> bool:
    """Whether it reduces a whole array to a scalar."""
    return e.name.startswith(("reduce_", "arg")) and bool(e.arrays) and is_scalar(e.outputs[0])


# --- checking ---------------------------------------------------------------------------------------------------------


def verified(leaf: Leaf) -> Leaf:
    """`leaf`, checked. Every pass ends with this.

    Raises:
        ValueError: if it breaks an invariant: the pass that made it has a fault.
    """
    found = [*broken(leaf.loop), *_misfits(leaf)]
    if found:
        raise ValueError(f"A pass of the native engine made a wrong loop: {'; '.join(found)}. Received: {leaf.loop}")
    return leaf


@functools.lru_cache(maxsize=256)
def broken(loop: Loop) -> list[str]:
    """The rules that a loop breaks."""
    inputs, operations, outputs = loop.inputs, loop.operations, loop.outputs
    numbers = {"x": len(inputs), "s": len(loop.scalars), "v": len(operations)}
    reads = [(k, x) for k, op in enumerate(operations) for x in op.inputs]
    reads += [(len(operations), y.source) for y in (*outputs, *loop.totals)]
    if any(isinstance(x, Ref) and not 0 <= x.number < (k if x.kind == "v" else numbers[x.kind]) for k, x in reads):
        return ["a value is read before it is known"]
    scopes = [(op, {loop.scope(x) for x in op.inputs}) for op in operations]
    gathered = {k: x for k, x in enumerate(inputs) if x.gathered}
    rest = dict(gathered)
    updated = [rest.pop(y.updates, ()) for y in outputs if y.updates is not None]
    rules = {
        "an operation is in a stage before its inputs are known": any(
            op.stage < loop.known(x) for op in operations for x in op.inputs
        ),
        "values packed in bytes are not packed, unpacked or stored but used": any(
            (PAIRED in some) != (op.name == UNPAIR) or (op.scope == PAIRED) != (op.name == PAIR) for op, some in scopes
        ),
        "an operation other than a reduction has fewer numbers than its inputs, or a reduction as many": any(
            op.scope != BLOCK if op.name in REDUCTIONS else op.scope == ARRAY or (op.scope == BLOCK and ELEMENT in some)
            for op, some in scopes
        ),
        "there are numbers for each block, but no blocks": loop.block is None
        and any(x.scope in (BLOCK, PAIRED) for x in (*inputs, *operations, *outputs)),
        "an output has fewer numbers than its source": any(
            loop.scope(y.source) not in READABLE[y.scope] for y in outputs
        ),
        "a result has another dtype than its source": any(
            loop.dtype(y.source) != y.dtype for y in (*outputs, *loop.totals)
        ),
        "a loop over rows gathers nothing, or has totals or packed buffers": bool(gathered) != (loop.rows is not None)
        or (bool(gathered) and (bool(loop.totals) or any(x.buffer is not None for x in (*inputs, *outputs)))),
        "an output over rows does not update a gathered input of its own, of its dtype and scope": [
            x[:2] for x in updated
        ]
        != [y[1:3] for y in outputs if loop.rows],
    }
    return [rule for rule, is_broken in rules.items() if is_broken]


def _misfits(leaf: Leaf) -> Iterator[str]:
    """Where the values of a leaf do not fit its loop."""
    loop, share = leaf.loop, {ELEMENT: 1, PAIRED: 2, BLOCK: leaf.loop.block}
    numbers = {x: leaf.buffers.index(place.buffer) for x, place in leaf.places.items()}
    arrays = leaf.inputs[:-1] if loop.rows else leaf.inputs
    operands = [*zip(loop.inputs, arrays, strict=True), *zip(loop.outputs, leaf.outputs, strict=True)]
    if any(x.buffer != numbers.get(value) for x, value in operands):
        yield "an array is in another packed buffer"
    values = *leaf.scalars, *leaf.totals, *arrays, *leaf.outputs
    if [x.dtype for x in values] != [x.dtype for x in (*loop.scalars, *loop.totals, *loop.inputs, *loop.outputs)]:
        yield "a value has another dtype"
    whole = [(x, y) for x, y in operands if not loop.is_in_rows(x)]
    if any(value.size * share[x.scope] != leaf.count for x, value in whole):
        yield "an array has another size"
