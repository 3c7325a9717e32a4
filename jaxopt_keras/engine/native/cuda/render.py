"""Renders a loop (`loop.py`) as a function in CUDA C++, which a thread block runs on one chunk of an array.

A thread has a few rows of consecutive elements. It loads all of them first, so that many bytes are in flight, and
keeps every value in registers, from one stage to the next. The threads of a group share a block of quantized elements,
and reduce it by exchanging registers. With totals a thread block makes several passes, and adds its part of each total
to R.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from jaxopt_keras.engine.native import c_ops as c
from jaxopt_keras.engine.native.ir import INDEX, PAIR, UNPAIR, Constant
from jaxopt_keras.engine.native.loop import BLOCK, ELEMENT, PAIRED, Input, Loop, Operand, Operation, Output, Ref

THREADS = 256
ELEMENTS = 8  # of a thread in one pass
MOST = 32  # elements of a thread that fit in registers
LONG = 16384  # elements of a chunk with totals, since each chunk has a partial sum
ADD = {"+": "R[{k}] + {x}", "max": "MAX((double){x}, R[{k}])", "&": "R[{k}] && {x}", "|": "R[{k}] || {x}"}
OVER_GROUP = {"+": "group_sum", "max": "group_max", "&": "group_all", "|": "group_any"}


@dataclass(frozen=True)
class Tiling:
    """How the threads of a thread block share a chunk of an array."""

    block: int | None
    width: int  # consecutive elements of a thread: a row
    rows: int  # of a thread in one pass
    group: int  # threads that share a block of elements
    passes: int

    @classmethod
    def of(cls, loop: Loop) -> "Tiling":
        if loop.rows:  # which may have any length
            return cls(None, 1, ELEMENTS, THREADS, 1)
        sizes = [np.dtype(x.dtype).itemsize for x in (*loop.inputs, *loop.outputs) if x.scope == ELEMENT]
        row = ELEMENTS if max(sizes, default=4) <= 2 else 4  # 16 bytes of the widest array
        if loop.block is None:
            return cls(None, row, ELEMENTS // row, THREADS, LONG // (THREADS * ELEMENTS) if loop.totals else 1)
        width = math.gcd(loop.block, row)
        group = min(32, 1 << (math.ceil(loop.block / width) - 1).bit_length())
        rows = math.ceil(loop.block / (width * group))
        each = THREADS // group * loop.block
        return cls(loop.block, width, rows, group, max(1, (LONG if loop.totals else THREADS * ELEMENTS) // each))

    @property
    def elements(self) -> int:
        """The elements of a thread in one pass."""
        return self.width * self.rows

    @property
    def blocks(self) -> int:
        """The blocks of elements of a thread block in one pass."""
        return THREADS // self.group

    @property
    def chunk(self) -> int:
        """The elements of a thread block."""
        return self.passes * (self.blocks * self.block if self.block else THREADS * self.elements)

    @property
    def is_exact(self) -> bool:
        """Whether a block of elements has one for every place in its threads."""
        return self.block is None or self.elements * self.group == self.block

    def share(self, scope: str) -> int:
        """How many elements share one item of an array."""
        return {BLOCK: self.block or 1, PAIRED: 2}.get(scope, 1)


@functools.lru_cache(maxsize=256)
def render(loop: Loop) -> str:
    """The function of a loop, with the name `NAME`.

    Raises:
        Unsupported: if there is no form for it.
    """
    return _Writer(loop).source()


def values(loop: Loop, read: Callable[[Ref], str]) -> Iterator[str]:
    """The lines that compute the results of a prologue, which is a loop, for one array.

    Args:
        read: where an input or a scalar is in memory.
    """
    for kind, operands in (("x", loop.inputs), ("s", loop.scalars)):
        for k, x in enumerate(operands):
            form = c.type_of(x.dtype)
            place = f"*(const {form.memory}*)({read(Ref(kind, k))})"
            yield f"const {form.register} {kind}{k} = {form.load.format(place)};"
    for k, operation in enumerate(loop.operations):
        text = c.expression(operation, loop.dtype(operation.inputs[0]), [*map(named, operation.inputs)])
        yield f"const {c.type_of(operation.dtype).register} v{k} = {text};"


def named(x: Operand) -> str:
    return c.literal(x) if isinstance(x, Constant) else f"{x.kind}{x.number}"


def memory(operand: Input | Output) -> str:
    """The type of an array's items."""
    return "uint8_t" if operand.scope == PAIRED else c.type_of(operand.dtype).memory


class _Writer:
    """The lines of a loop, in the order of its stages."""

    def __init__(self, loop: Loop) -> None:
        self.loop, self.tiling = loop, Tiling.of(loop)
        if self.tiling.elements > MOST:
            raise c.Unsupported("blocks too long for registers")
        if loop.rows and loop.block:
            raise c.Unsupported("blocks in rows of a sparse gradient")
        self.arrays: list[str] = []  # what a thread keeps for each of its elements
        self.lines: list[str] = []
        self.read: set[Ref] = set()  # what is known in the loop over the elements of this stage
        self._loads()
        for stage in range(max([op.known for op in loop.operations], default=0) + 1):
            self._stage(stage)
        self._stores()

    # --- memory -------------------------------------------------------------------------------------------------------

    def _loads(self) -> None:
        for k, x in enumerate(self.loop.inputs):
            kind = c.type_of(x.dtype)
            if x.scope == BLOCK:
                self.arrays.append(f"const {kind.register} x{k} = on ? {kind.load.format(f'X{k}[unit]')} : 0;")
            else:
                self.arrays.append(self._array(f"x{k}_", x))
                self.arrays += self._rows("load<{w}, whole>({kept}, {array}, {left});", x, f"x{k}_", f"X{k}")

    def _stores(self) -> None:
        if any(y.scope == BLOCK for y in self.loop.outputs):
            self.lines.append("__syncwarp();  // all lanes have read the old numbers of their block")
        for k, y in enumerate(self.loop.outputs):
            if y.scope == BLOCK:
                text = c.type_of(y.dtype).store.format(named(y.source))
                self.lines.append(f"if (on && lane == 0) Y{k}[unit] = {text};")
            else:
                kept = f"{named(y.source)}_" if y.scope == PAIRED else f"y{k}_"
                self.lines += self._rows("store<{w}, whole>({array}, {kept}, {left});", y, kept, f"Y{k}")

    def _array(self, name: str, x: Input | Output) -> str:
        return f"{memory(x)} {name}[{self.tiling.elements // self.tiling.share(x.scope)}];"

    def _rows(self, text: str, x: Input | Output, kept: str, array: str) -> Iterator[str]:
        """The accesses to the rows of a thread."""
        share, width = self.tiling.share(x.scope), self.tiling.width
        over = f" / {share}" if share > 1 else ""
        at = "place" if self.loop.is_in_rows(x) else "at"
        for r in range(self.tiling.rows):
            places = {"kept": f"{kept} + {r * width // share}", "array": f"{array} + {at}[{r}]{over}"}
            yield text.format(w=width // share, left=f"left[{r}]{over}", **places)

    # --- values -------------------------------------------------------------------------------------------------------

    def _stage(self, stage: int) -> None:
        """One loop over the elements of a thread, and what is computed once for a block before and after it."""
        loop, width = self.loop, self.tiling.width
        self.before, self.inside, self.after = (list[str]() for _ in range(3))
        self.read = set()
        for k, operation in enumerate(loop.operations):
            if operation.stage == stage:
                self._operation(Ref("v", k), operation)
        for k, y in enumerate(loop.outputs):
            if y.scope == ELEMENT and loop.known(y.source) == stage:
                self._use(y.source)
                self.arrays.append(self._array(f"y{k}_", y))
                self.inside.append(f"y{k}_[j] = {c.type_of(y.dtype).store.format(named(y.source))};")
        for k, total in enumerate(loop.totals):
            if loop.known(total.source) == stage:
                read = self._accumulate(total.name, total.source, f"t{k}").format(f"t{k}_a")
                self.after.append(f"R[{k}] = {ADD[c.OPERATORS[total.name]].format(k=k, x=read)};")
        self.lines += self.before
        if self.inside:
            all_there = "whole || " if self.tiling.is_exact else ""
            self.lines += [
                "#pragma unroll",
                f"for (int j = 0; j < {self.tiling.elements}; j++) {{",
                f"  const int o = at[j / {width}] + j % {width};",
                f"  const bool ok = {all_there}j % {width} < left[j / {width}];",
                *(f"  {text}" for text in self.inside),
                "}",
            ]
        self.lines += self.after

    def _use(self, x: Operand) -> None:
        """Read the element's number of `x` in the loop of this stage."""
        if isinstance(x, Constant) or x in self.read or self.loop.scope(x) != ELEMENT:
            return
        self.read.add(x)
        kind, name = c.type_of(self.loop.dtype(x)), named(x)
        kept = kind.load.format(f"{name}_[j]") if x.kind == "x" else f"{name}_[j]"
        self.inside.append(f"const {kind.register} {name} = {kept};")

    def _operation(self, x: Ref, operation: Operation) -> None:
        name, register = named(x), c.type_of(operation.dtype).register
        if operation.name in c.OPERATORS:
            read = self._accumulate(operation.name, operation.inputs[0], name)
            whole = f"{OVER_GROUP[c.OPERATORS[operation.name]]}<{self.tiling.group}>({name}_a)"
            self.after.append(f"const {register} {name} = {read.format(whole)};")
            return
        for a in operation.inputs:
            self._use(a)
        if operation.name == PAIR:
            self.arrays.append(f"uint8_t {name}_[{self.tiling.elements // 2}];")
            nibble = f"(uint8_t)({named(operation.inputs[0])} & 15)"
            self.inside.append(f"{name}_[j / 2] = j % 2 ? {name}_[j / 2] | {nibble} << 4 : {nibble};")
            return
        lines = self.before if operation.scope == BLOCK else self.inside
        lines.append(f"const {register} {name} = {self._expression(operation)};")
        if operation.scope == ELEMENT:
            self.read.add(x)
            if any(x in other.inputs and other.stage > operation.stage for other in self.loop.operations):
                self.arrays.append(f"{register} {name}_[{self.tiling.elements}];")
                self.inside.append(f"{name}_[j] = {name};")

    def _expression(self, operation: Operation) -> str:
        args = [named(x) for x in operation.inputs]
        if operation.name == INDEX:
            return "first + o"
        if operation.name == UNPAIR:
            nibble = f"({args[0]}_[j / 2] >> j % 2 * 4 & 15)"
            return f"({nibble} ^ 8) - 8" if operation.dtype == "int8" else nibble
        return c.expression(operation, self.loop.dtype(operation.inputs[0]), args)

    def _accumulate(self, reduction: str, x: Operand, name: str) -> str:
        """Reduce `x` over the elements of a thread, to `name`_a. Returns how its result is read."""
        self._use(x)
        operator, dtype = c.OPERATORS[reduction], self.loop.dtype(x)
        value, result = named(x), f"{name}_a"
        if dtype == "bool" and operator in ("&", "|"):
            kind, start, text, read = "int", int(operator == "&"), f"{result} {operator}= {value};", "{}"
        elif dtype in ("float32", "float64") and operator == "+":
            kind, start, text, read = c.type_of(dtype).register, 0, f"{result} += {value};", "{}"
        elif dtype == "float32" and operator == "max" and c.is_absolute(self.loop, x):
            # Without signs, floats are ordered as their bits are, and NaN is the greatest.
            kind, start, text, read = "uint32_t", 0, f"{result} = MAX(as_bits({value}), {result});", "as_float({})"
        else:
            raise c.Unsupported(f"{reduction} of {dtype}")
        self.before.append(f"{kind} {result} = {start};")
        self.inside.append(f"if (ok) {text}")
        return read

    # --- source -------------------------------------------------------------------------------------------------------

    def source(self) -> str:
        loop, tiling = self.loop, self.tiling
        arguments = ["const F& prologue", "uint32_t first", "int n"]
        arguments += [f"const {memory(x)}* X{k}" for k, x in enumerate(loop.inputs)]
        arguments += [f"{memory(y)}* Y{k}" for k, y in enumerate(loop.outputs)]
        arguments += ["double* R"] if loop.totals else []
        arguments += [f"const {c.type_of(loop.rows).memory}* N, Rows rows"] if loop.rows else []
        lines = [f"template <bool whole, class F> __device__ __forceinline__ void NAME({', '.join(arguments)}) {{"]
        lines += [f"  const int lane = threadIdx.x % {tiling.group};"] if tiling.block else []
        loop_over = f"int q = 0; q < {tiling.passes} && q * {tiling.chunk // tiling.passes} < n; q++"
        scalars = [*self._scalars()]
        if tiling.passes > 1:
            lines += [f"  {text}" for text in scalars]
        lines += ["  #pragma unroll 1", f"  for ({loop_over}) {{"]
        once = scalars if tiling.passes == 1 else []  # while the arrays are on their way
        lines += [f"    {text}" for text in (*self._places(), *self.arrays, *once, *self.lines)]
        return "\n".join([*lines, "  }", "}", ""])

    def _scalars(self) -> Iterator[str]:
        """One thread computes the scalars, for all others."""
        if self.loop.scalars:
            yield "__shared__ decltype(prologue()) S;"
            yield "if (threadIdx.x == 0) S = prologue();"
            yield "__syncthreads();"
        for k, x in enumerate(self.loop.scalars):
            yield f"const {c.type_of(x.dtype).register} s{k} = S.s{k};"

    def _places(self) -> Iterator[str]:
        """Where each row of a thread starts in the chunk, and how many elements are there."""
        block, width, group = self.tiling.block, self.tiling.width, self.tiling.group
        yield f"int at[{self.tiling.rows}], left[{self.tiling.rows}];"
        if block is None:
            for r in range(self.tiling.rows):
                place = f"((q * {self.tiling.rows} + {r}) * {THREADS} + threadIdx.x) * {width}"
                yield f"at[{r}] = {place}, left[{r}] = n - at[{r}];"
            if self.loop.rows:
                yield f"size_t place[{self.tiling.rows}];"
                for r in range(self.tiling.rows):
                    yield f"place[{r}] = place_of(N, rows, first + at[{r}], left[{r}]);"
            return
        yield f"const int unit = q * {self.tiling.blocks} + threadIdx.x / {group};"
        yield f"const bool on = whole || unit * {block} < n;"
        for r in range(self.tiling.rows):
            place = f"{r * group * width} + lane * {width}"
            inside = "on" if self.tiling.is_exact else f"on && {place} < {block}"
            yield f"at[{r}] = unit * {block} + {place}, left[{r}] = {inside} ? {width} : 0;"
