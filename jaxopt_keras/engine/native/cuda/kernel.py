"""One kernel for all arrays of a phase: its source, and the table of numbers that fits it to a model.

Each thread block runs one chunk of one array, so that large and small arrays share the GPU evenly. The source depends
on the kinds of loops only, so it is compiled once for each structure of a rule. What differs between models is a table:

    the number of leaves; the pointer to the partial totals; the end of each kind among the leaves
    for each leaf its first chunk, and the number of all chunks
    for each leaf: its elements, where its scalars start; for each operand where it starts in the array of its pointer,
        and the number of the pointer, two in a word

So a leaf has a row of the same form whether its operands are arrays of their own, or in a packed buffer, or in several.
A kernel gets one pointer for each operand and each result of its call. They are parameters, which are consecutive in
memory: the form "table" reads them by number. In the form "switch" they are in the source, so that each model has its
own.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from jaxopt_keras.engine.native import c_ops as c
from jaxopt_keras.engine.native.cuda.render import THREADS, Tiling, memory, render
from jaxopt_keras.engine.native.ir import Value
from jaxopt_keras.engine.native.loop import BLOCK, Input, Leaf, Loop, Output

NAME = "jk_step"  # not `step`, which is a function of glibc
POINTERS = 4095  # parameters, of 32,764 bytes
WORDS = 16000  # of the table, in constant memory, which has 64 KiB
HEAD, FIXED = 2, 2  # words before those of kinds; words of a leaf before those of its operands
HOW = {"+": "SUM", "max": "GREATEST", "&": "ALL", "|": "SOME"}


class Layout(NamedTuple):
    """The kinds of loops of a kernel, and the places of its numbers in the table."""

    loops: tuple[Loop, ...]
    is_guarded: bool = False  # the first word of the scalars is a flag: without it the kernel does nothing

    @property
    def totals(self) -> int:
        """The most totals of a leaf."""
        return max(len(loop.totals) for loop in self.loops)

    @property
    def result(self) -> str:
        """The dtype of totals."""
        return "float64" if any(t.dtype == "float64" for loop in self.loops for t in loop.totals) else "float32"

    @property
    def operands(self) -> int:
        """The most operands of a leaf, or one more: an even number."""
        return max(len(loop.inputs) + len(loop.outputs) + 1 for loop in self.loops) // 2 * 2

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


@functools.lru_cache(maxsize=256)
def kind_of(loop: Loop) -> Loop:
    """The loop, wherever its arrays are: a kernel finds that in the table."""
    inputs, outputs = (tuple(x._replace(buffer=None) for x in some) for some in (loop.inputs, loop.outputs))
    return replace(loop, inputs=inputs, outputs=outputs)


def chunks(leaf: Leaf) -> int:
    return -(-leaf.count // Tiling.of(leaf.loop).chunk)


def table(layout: Layout, leaves: Sequence[Leaf], rows: Sequence[int], numbers: dict[Any, int]) -> np.ndarray:
    """The table of a kernel.

    Args:
        leaves: in the order of their kinds.
        rows: where the scalars of each leaf start.
        numbers: the pointers: of (value, whether it is written), and of the partial totals at "partial".
    """
    kinds = [layout.loops.index(kind_of(leaf.loop)) for leaf in leaves]
    head = [len(leaves), numbers.get("partial", 0), *(sum(k <= i for k in kinds) for i in range(len(layout.loops)))]
    first = np.cumsum([0, *map(chunks, leaves)]).tolist()
    words = []
    for leaf, row, own in zip(leaves, rows, pointers(leaves, numbers), strict=True):
        starts = [leaf.places[x].start if x in leaf.places else 0 for x in (*leaf.inputs, *leaf.outputs)]
        rest = [0] * (layout.operands - len(starts))
        pairs = zip(*[iter([*own, *rest])] * 2, strict=True)
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
        heads, scalars, partial = ", ".join(f"char* a{k}" for k in range(parameters)), "a0", f"a{parameters - 2}"
        totals = f"a{parameters - 1}"
    else:
        lines.append(f"struct Pointers {{ char* a[{POINTERS}]; }};")
        heads, scalars, partial = "const __grid_constant__ Pointers P", "P.a[0]", "P.a[TABLE[1]]"
        totals = "P.a[TABLE[1] + 1]"
    lines += [
        f'extern "C" __global__ void __launch_bounds__({THREADS}) {NAME}({heads}) {{',
        *([f"  if (!*(const uint32_t*){scalars}) return;"] if layout.is_guarded else []),
        f"  const uint32_t leaves = TABLE[0], *first = TABLE + {layout.first};",
        "  const uint32_t leaf = find(first, leaves, blockIdx.x), chunk = blockIdx.x - first[leaf];",
        f"  const uint32_t* L = first + leaves + 1 + {layout.row} * leaf;",
        f"  const uint32_t* S = (const uint32_t*){scalars} + L[1];",
    ]
    if cases:
        lines += [f"  char* A[{layout.operands}];", "  switch (leaf) {"]
        for k, case in enumerate(cases):
            sets = " ".join(f"A[{j}] = a{p};" for j, p in enumerate(case))
            lines.append(f"    {'default' if k == len(cases) - 1 else f'case {k}'}: {sets} break;")
        lines.append("  }")
    if layout.totals:
        lines += [f"  double R[{layout.totals}];", "  const int* how = HOW;"]
    for kind in range(len(layout.loops)):
        lines += [f"  {'else ' if kind else ''}if (leaf < TABLE[{HEAD + kind}]) {{"]
        lines += [*(f"    {text}" for text in _chunk(layout, kind, bool(cases))), "  }"]
    if layout.totals:
        lines += [f"  {text}" for text in _finish(layout, partial, totals)]
    return "\n".join([*lines, "}", ""])


def _functions(layout: Layout) -> Iterator[str]:
    for k, loop in enumerate(layout.loops):
        yield render(loop).replace("NAME", f"loop{k}", 1)
    if layout.totals:
        rows = [[HOW[c.OPERATORS[t.name]] for t in loop.totals] for loop in layout.loops]
        words = [how for row in rows for how in (*row, *["SUM"] * (layout.totals - len(row)))]
        yield "__device__ uint32_t arrived;"
        yield f"__constant__ int HOW[] = {{ {', '.join(words)} }};"


def _chunk(layout: Layout, kind: int, is_switch: bool) -> Iterator[str]:
    """The lines of a thread block that has a leaf of this kind."""
    loop = layout.loops[kind]
    tiling, operands = Tiling.of(loop), [*loop.inputs, *loop.outputs]
    names = [*(f"X{k}" for k in range(len(loop.inputs))), *(f"Y{k}" for k in range(len(loop.outputs)))]
    yield f"const uint32_t start = chunk * {tiling.chunk}u, rest = L[0] - start;"
    yield f"const int n = rest < {tiling.chunk}u ? rest : {tiling.chunk}u;"
    wide = []
    for j, (name, x) in enumerate(zip(names, operands, strict=True)):
        word = f"L[{FIXED + layout.operands + j // 2}]"
        pointer = f"A[{j}]" if is_switch else f"P.a[{word} >> 16]" if j % 2 else f"P.a[{word} & 0xffff]"
        share = tiling.share(x.scope)
        place = f"L[{FIXED + j}] + {f'start / {share}' if share > 1 else 'start'}"
        yield f"{_const(x)}{memory(x)}* {name} = ({_const(x)}{memory(x)}*){pointer} + {place};"
        if x.scope != BLOCK:
            wide.append(f"(size_t){name} % sizeof(Row<{tiling.width // share}, {memory(x)}>)")
    arguments = ", ".join(["start", "{}", *names, *(["R"] if loop.totals else [])])
    if layout.totals:
        yield f"how = HOW + {kind * layout.totals};"
        yield f"for (int k = 0; k < {layout.totals}; k++) R[k] = start_of(how[k]);"
    yield f"const bool whole = n == {tiling.chunk} && !({' | '.join(wide) or '0'});"
    yield f"if (whole) loop{kind}<true>(S, {arguments.format(tiling.chunk)});"
    yield f"else loop{kind}<false>(S, {arguments.format('n')});"


def _const(x: Input | Output) -> str:
    return "const " if isinstance(x, Input) else ""


def _finish(layout: Layout, partial: str, totals: str) -> Iterator[str]:
    """The totals of each leaf, by the last thread block; then, for each total, that of all leaves."""
    result = c.type_of(layout.result).register
    yield f"{result}* to = ({result}*){totals};"
    yield f"combine_block<{layout.totals}>(R, how, (double*){partial});"
    yield "if (!is_last(&arrived)) return;"
    yield f"for (uint32_t l = threadIdx.x / 32; l < leaves; l += {THREADS // 32}) {{"
    for kind in range(len(layout.loops) - 1, -1, -1):
        yield f"  if (l < TABLE[{HEAD + kind}]) how = HOW + {kind * layout.totals};"
    yield f"  for (int k = 0; k < {layout.totals}; k++) {{"
    yield (
        f"    const double a = combine_chunks(how[k], (double*){partial} + k, {layout.totals}, first[l], first[l + 1]);"
    )
    yield "    if (threadIdx.x % 32 == 0) to[k * (leaves + 1) + l] = a;"
    yield "  }"
    yield "}"
    yield "__syncthreads();"
    yield f"for (int k = threadIdx.x / 32; k < {layout.totals}; k += {THREADS // 32}) {{"
    yield f"  {result}* row = to + k * (leaves + 1);"
    yield "  const double a = combine_leaves(HOW[k], row, leaves);"
    yield "  if (threadIdx.x % 32 == 0) row[leaves] = a;"
    yield "}"
