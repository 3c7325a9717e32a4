"""One kernel for all arrays of a phase: its source, and the table of numbers that fits it to a model.

Each thread block runs one chunk of one array, so that large and small arrays share the GPU evenly. The source depends
on the kinds of loops only, so it is compiled once for each structure of a rule. What differs between models is a table:

    the number of leaves; the first pointer after those to arrays; the end of each kind among the leaves
    for each leaf its first chunk, and the number of all chunks
    for each leaf: its elements, its number among those of its kind; for each operand where it starts in the array of
        its pointer, and the number of the pointer, two in a word

So a leaf has a row of the same form whether its operands are arrays of their own, or in a packed buffer, or in several.
A kernel gets one pointer for each operand and each result of its call. They are parameters, which are consecutive in
memory: the form "table" reads them by number. In the form "switch" they are in the source, so that each model has its
own. First come the pointers to what prologues read, last those to the scalars of the new state, to the partial totals,
to the totals of all leaves, and to those of all leaves together.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxopt_keras.engine.native import c_ops as c
from jaxopt_keras.engine.native.cuda.render import THREADS, Tiling, memory, named, render, values
from jaxopt_keras.engine.native.ir import Value
from jaxopt_keras.engine.native.loop import BLOCK, Input, Leaf, Loop, Output, Ref, kind_of

NAME = "jk_step"  # not `step`, which is a function of glibc
POINTERS = 4095  # parameters, of 32,764 bytes
WORDS = 16000  # of the table, in constant memory, which has 64 KiB
HEAD, FIXED = 2, 2  # words before those of kinds; words of a leaf before those of its operands
HOW = {"+": "SUM", "max": "GREATEST", "&": "ALL", "|": "SOME"}


class Computed(NamedTuple):
    """Scalars that a kernel computes, and the pointers to what it reads for them."""

    loop: Loop
    pointers: tuple[int, ...]

    def lines(self, at: str, pointer: Callable[[int], str]) -> Iterator[str]:
        """Their lines for the array with the number `at` among those of its kind."""

        def read(x: Ref) -> str:
            base = pointer(self.pointers[x.number + (len(self.loop.inputs) if x.kind == "s" else 0)])
            return base if x.kind == "s" else f"{base} + sizeof({memory(self.loop.inputs[x.number])}) * {at}"

        return values(self.loop, read)


class Layout(NamedTuple):
    """The kinds of loops of a kernel, and the places of its numbers in the table."""

    loops: tuple[Loop, ...]
    prologues: tuple[Computed, ...] = ()  # one for each kind
    last: Computed | None = None  # the scalars of the new state, which the last thread block writes
    is_guarded: bool = False  # the first pointer is that to a flag: without it the kernel does nothing

    @property
    def totals(self) -> int:
        """The most totals of a leaf."""
        return max(len(loop.totals) for loop in self.loops)

    @property
    def new(self) -> int:
        """The scalars of the new state."""
        return len(self.last.loop.outputs) if self.last else 0

    @property
    def rest(self) -> int:
        """The pointers after those to arrays."""
        return self.new + (1 + 2 * self.totals if self.totals else 0)

    @property
    def result(self) -> str:
        """The dtype of totals."""
        return "float64" if any(t.dtype == "float64" for loop in self.loops for t in loop.totals) else "float32"

    @property
    def operands(self) -> int:
        """The most operands of a leaf, or one more: an even number. Rows have their numbers, and two more words."""
        return max(len(loop.inputs) + len(loop.outputs) + 2 * bool(loop.rows) + 1 for loop in self.loops) // 2 * 2

    @property
    def first(self) -> int:
        """The word of the first chunk of the first leaf."""
        return HEAD + len(self.loops)

    @property
    def row(self) -> int:
        """The words of a leaf."""
        return FIXED + self.operands + self.operands // 2

    def words(self, leaves: int) -> int:
        return self.first + leaves + 1 + self.row * leaves


def chunks(leaf: Leaf) -> int:
    return -(-leaf.count // Tiling.of(leaf.loop).chunk)


def table(layout: Layout, leaves: Sequence[Leaf], rows: Sequence[int], numbers: dict[Any, int]) -> np.ndarray:
    """The table of a kernel.

    Args:
        leaves: in the order of their kinds.
        rows: the number of each leaf among those of its kind in the whole phase.
        numbers: the pointers: of (value, whether it is written), and the first one after these at "rest".
    """
    kinds = [layout.loops.index(kind_of(leaf.loop)) for leaf in leaves]
    head = [len(leaves), numbers["rest"], *(sum(k <= i for k in kinds) for i in range(len(layout.loops)))]
    first = np.cumsum([0, *map(chunks, leaves)]).tolist()
    words = []
    for leaf, row, own in zip(leaves, rows, pointers(leaves, numbers), strict=True):
        starts = [leaf.places[x].start if x in leaf.places else 0 for x in (*leaf.inputs, *leaf.outputs)]
        if leaf.loop.rows:  # their length is where the start of their numbers would be, the number of all rows is last
            height, *row_shape = leaf.outputs[0].shape
            starts[len(leaf.loop.inputs)] = math.prod(row_shape)
            starts.append(height)
        pairs = zip(*[iter([*own, *[0] * (layout.operands - len(own))])] * 2, strict=True)
        rest = [0] * (layout.operands - len(starts))
        words += [leaf.count, row, *starts, *rest, *(low | high << 16 for low, high in pairs)]
    return np.array([*head, *first, *words], np.uint32)


def pointers(leaves: Sequence[Leaf], numbers: dict[Any, int]) -> tuple[tuple[int, ...], ...]:
    """The parameters of each leaf, by operand."""

    def number(leaf: Leaf, x: Value, is_output: bool) -> int:
        return numbers[leaf.places[x].buffer if x in leaf.places else x, is_output]

    return tuple((*(number(f, x, False) for x in f.inputs), *(number(f, x, True) for x in f.outputs)) for f in leaves)


@functools.lru_cache(maxsize=128)
def source(layout: Layout, parameters: int = 0, cases: tuple[tuple[int, ...], ...] = ()) -> str:
    """The source of a kernel, in the form "table"; with `cases`, of `pointers`, in that form.

    Args:
        parameters: their number, for the form "switch".
    """
    lines = ['#include "device.h"', "", *_functions(layout), f"__constant__ uint32_t TABLE[{WORDS}];"]
    if cases:
        heads = ", ".join(f"char* a{k}" for k in range(parameters))
        first_rest = parameters - layout.rest
        pointer, rest = (lambda k: f"a{k}"), (lambda k: f"a{first_rest + k}")
    else:
        lines.append(f"struct Pointers {{ char* a[{POINTERS}]; }};")
        heads = "const __grid_constant__ Pointers P"
        pointer, rest = (lambda k: f"P.a[{k}]"), (lambda k: f"P.a[TABLE[1] + {k}]")
    lines += [
        f'extern "C" __global__ void __launch_bounds__({THREADS}) {NAME}({heads}) {{',
        *([f"  if (!*(const uint8_t*){pointer(0)}) return;"] if layout.is_guarded else []),
        f"  const uint32_t leaves = TABLE[0], *first = TABLE + {layout.first};",
        "  const uint32_t leaf = find(first, leaves, blockIdx.x), chunk = blockIdx.x - first[leaf];",
        f"  const uint32_t* L = first + leaves + 1 + {layout.row} * leaf;",
    ]
    if cases:
        lines += [f"  char* A[{layout.operands}];", "  switch (leaf) {"]
        for k, case in enumerate(cases):
            sets = " ".join(f"A[{j}] = a{p};" for j, p in enumerate(case))
            lines.append(f"    {'default' if k == len(cases) - 1 else f'case {k}'}: {sets} break;")
        lines.append("  }")
    if layout.totals:
        lines += [f"  double R[{layout.totals}];", "  const int* how = HOW;"]
    if layout.last:
        lines.append("  bool all_have_read = false;")
    for kind in range(len(layout.loops)):
        lines += [f"  {'else ' if kind else ''}if (leaf < TABLE[{HEAD + kind}]) {{"]
        lines += [f"    {text}" for text in _chunk(layout, kind, bool(cases), pointer)] + ["  }"]
    if layout.last:
        lines += [f"  {text}" for text in _write(layout.last, pointer, rest)]
    if layout.totals:
        lines += [f"  {text}" for text in _finish(layout, rest)]
    return "\n".join([*lines, "}", ""])


def _functions(layout: Layout) -> Iterator[str]:
    for k, loop in enumerate(layout.loops):
        scalars = " ".join(f"{c.type_of(x.dtype).register} s{i};" for i, x in enumerate(loop.scalars))
        yield f"struct Scalars{k} {{ {scalars} }};"
        yield render(loop).replace("NAME", f"loop{k}", 1)
    if layout.last:
        yield "__device__ uint32_t readers;"
    if layout.totals:
        rows = [[HOW[c.OPERATORS[t.name]] for t in loop.totals] for loop in layout.loops]
        words = [how for row in rows for how in (*row, *["SUM"] * (layout.totals - len(row)))]
        yield "__device__ uint32_t arrived;"
        yield f"__constant__ int HOW[] = {{ {', '.join(words)} }};"


def _chunk(layout: Layout, kind: int, is_switch: bool, pointer: Callable[[int], str]) -> Iterator[str]:
    """The lines of a thread block that has a leaf of this kind."""
    loop = layout.loops[kind]
    yield from _prologue(layout, kind, pointer)
    tiling = Tiling.of(loop)
    operands: dict[str, Any] = {f"X{k}": x for k, x in enumerate(loop.inputs)}
    operands |= {"N": None} if loop.rows else {}
    operands |= {f"Y{k}": y for k, y in enumerate(loop.outputs)}
    yield f"const uint32_t start = chunk * {tiling.chunk}u, rest = L[0] - start;"
    yield f"const int n = rest < {tiling.chunk}u ? rest : {tiling.chunk}u;"
    misaligned = []
    for j, (name, x) in enumerate(operands.items()):
        word = f"L[{FIXED + layout.operands + j // 2}]"
        base = f"A[{j}]" if is_switch else f"P.a[{word} >> 16]" if j % 2 else f"P.a[{word} & 0xffff]"
        if x is None:
            numbers = f"const {c.type_of(str(loop.rows)).memory}*"
            yield f"{numbers} N = ({numbers}){base};"
            yield f"const Rows touched = {{ L[{FIXED + j}], L[{FIXED + len(operands)}] }};"
            continue
        share = tiling.share(x.scope)
        start = "0" if loop.is_in_rows(x) else f"start / {share}" if share > 1 else "start"
        place = f"L[{FIXED + j}] + {start}"
        yield f"{_const(x)}{memory(x)}* {name} = ({_const(x)}{memory(x)}*){base} + {place};"
        if x.scope != BLOCK:
            misaligned.append(f"(size_t){name} % sizeof(Row<{tiling.width // share}, {memory(x)}>)")
    names = [name for name, x in operands.items() if x is not None]
    rest = [*(["R"] if loop.totals else []), *(["N", "touched"] if loop.rows else [])]
    arguments = ", ".join(["start", "{}", *names, *rest])
    if layout.totals:
        yield f"how = HOW + {kind * layout.totals};"
        yield f"for (int k = 0; k < {layout.totals}; k++) R[k] = start_of(how[k]);"
    yield f"const bool whole = n == {tiling.chunk} && !({' | '.join(misaligned) or '0'});"
    yield f"if (whole) loop{kind}<true>(prologue, {arguments.format(tiling.chunk)});"
    yield f"else loop{kind}<false>(prologue, {arguments.format('n')});"


def _const(x: Input | Output) -> str:
    return "const " if isinstance(x, Input) else ""


def _prologue(layout: Layout, kind: int, pointer: Callable[[int], str]) -> Iterator[str]:
    """The scalars of a leaf, as a function that one thread of its block calls."""
    arrive = "all_have_read = has_arrived_last(&readers);"
    yield "const auto prologue = [&] {"
    for text in layout.prologues[kind].lines("L[1]", pointer):
        yield f"  {text}"
    if layout.last and layout.loops[kind].scalars:
        yield f"  {arrive}"
    scalars = (named(y.source) for y in layout.prologues[kind].loop.outputs)
    yield f"  return Scalars{kind}{{{', '.join(scalars)}}};"
    yield "};"
    if layout.last and not layout.loops[kind].scalars:
        yield f"if (threadIdx.x == 0) {arrive}"


def _write(last: Computed, pointer: Callable[[int], str], rest: Callable[[int], str]) -> Iterator[str]:
    """The scalars of the new state, which may take the memory of the old ones: every thread block has read those."""
    yield "if (all_have_read) {"
    for text in last.lines("0", pointer):
        yield f"  {text}"
    for k, y in enumerate(last.loop.outputs):
        yield f"  *({memory(y)}*){rest(k)} = {c.type_of(y.dtype).store.format(named(y.source))};"
    yield "}"


def _finish(layout: Layout, rest: Callable[[int], str]) -> Iterator[str]:
    """The totals of each leaf, by the last thread block; then, for each total, that of all leaves."""
    result, totals, own = c.type_of(layout.result).register, layout.totals, layout.new
    partial = f"(double*){rest(own)}"
    rows, sums = ([f"({result}*){rest(own + 1 + k + start)}" for k in range(totals)] for start in (0, totals))
    yield f"combine_block<{totals}>(R, how, {partial});"
    yield "if (!is_last(&arrived)) return;"
    yield f"for (uint32_t l = threadIdx.x / 32; l < leaves; l += {THREADS // 32}) {{"
    for kind in range(len(layout.loops) - 1, -1, -1):
        yield f"  if (l < TABLE[{HEAD + kind}]) how = HOW + {kind * totals};"
    for k, row in enumerate(rows):
        yield f"  store_first({row} + l, combine_chunks(how[{k}], {partial} + {k}, {totals}, first[l], first[l + 1]));"
    yield "}"
    yield "__syncthreads();"
    for k, (row, total) in enumerate(zip(rows, sums, strict=True)):
        warp = f"if (threadIdx.x / 32 == {k % (THREADS // 32)}) "
        yield f"{warp}store_first({total}, combine_leaves(HOW[{k}], {row}, leaves));"
