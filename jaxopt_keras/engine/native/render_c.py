"""Renders a loop (`loop.py`) as C source, with `runtime.h` around it.

Without blocks the source has one loop over the elements. With blocks it goes block by block, with one inner loop for
each stage: a value of an earlier stage is computed again if that is cheap, otherwise it is kept in a small array, a
tile. Scalars are data, so that only constants of the rule are part of the source.
"""

import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator

from jaxopt_keras.engine.native import c_ops as c
from jaxopt_keras.engine.native.ir import PAIR, UNPAIR, Constant
from jaxopt_keras.engine.native.loop import BLOCK, ELEMENT, PAIRED, Loop, Operand, Operation, Output, Ref, Total

CHEAP = ("abs", "neg", "min", "lt", "gt", "convert_element_type", "bitcast_convert_type")
UNIT = 4096  # the least number of elements for one thread
TILES = 2**15  # the most elements in the tiles on a thread's stack, which on some systems is 512 KiB
FLOAT8 = "float8_e4m3fn"  # C lacks its conversions
STARTS = {"+": "0", "max": "-INFINITY", "&": "1", "|": "0"}  # of totals
COMBINE = {"+": "SUM", "max": "GREATEST", "&": "ALL", "|": "SOME"}
ADD = {"+": "R[{k}] + {x}", "max": "MAX({x}, R[{k}])", "&": "R[{k}] && {x}", "|": "R[{k}] || {x}"}


@functools.lru_cache(maxsize=256)
def render_c(loop: Loop) -> str:
    """The C source of a loop.

    Raises:
        Unsupported: if C has no form for it.
    """
    return _Writer(loop).source()


class _Writer:
    """The lines of a loop by stage: `before` its inner loop, `loads` and then `body` in it, and `after` it."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        if FLOAT8 in {x.dtype for x in (*loop.inputs, *loop.scalars, *loop.operations, *loop.outputs)}:
            raise c.Unsupported(FLOAT8)
        self.before, self.loads, self.body, self.after = (defaultdict[int, list[str]](list) for _ in range(4))
        self.reduced: dict[int, list[tuple[str, str]]] = defaultdict(list)  # (operator, variable)
        self.tiles: dict[str, str] = {}  # the C type of each
        self.loaded: set[Ref] = set()
        for k, operation in enumerate(loop.operations):
            self._operation(operation, f"v{k}")
        for k, output in enumerate(loop.outputs):
            self._store(k, output)
        for k, total in enumerate(loop.totals):
            self._total(k, total)
        if len(self.tiles) * (loop.block or 0) > TILES:
            raise c.Unsupported("blocks too long to keep")

    # --- values -------------------------------------------------------------------------------------------------------

    def _name(self, x: Operand, stage: int) -> str:
        """The variable of `x` in the inner loop of `stage`."""
        if isinstance(x, Constant):
            return c.literal(x)
        name = f"{x.kind}{x.number}"
        if x.kind == "x" and x not in self.loaded:
            self._load(x, name)
        if self.loop.scope(x) != ELEMENT or self.loop.known(x) == stage:
            return name
        if self._is_cheap(x):
            _once(self.body[stage], self._definition(self.loop.operations[x.number], name, stage))
        else:
            self._keep(x, name, stage)
        return name

    def _load(self, x: Ref, name: str) -> None:
        self.loaded.add(x)
        operand, kind = self.loop.inputs[x.number], c.type_of(self.loop.dtype(x))
        lines, at = (self.before, "o / BLOCK") if operand.scope == BLOCK else (self.loads, "o + j")
        lines[0].append(f"const {kind.register} {name} = {kind.load.format(f'X{x.number}[{at}]')};")

    def _is_cheap(self, x: Ref) -> bool:
        """Whether to compute `x` again rather than to keep it: it depends on one array at most."""
        if x.kind != "v":
            return False
        operation = self.loop.operations[x.number]
        arrays = self.loop.arrays(operation)
        if operation.name in (PAIR, UNPAIR, *c.OPERATORS) or any(self.loop.scope(a) == BLOCK for a in arrays):
            return False
        return (operation.name in CHEAP and len(arrays) == 1) or all(map(self._is_index, arrays))

    def _is_index(self, x: Ref) -> bool:
        """Whether `x` depends on the element's index and on scalars alone."""
        return x.kind == "v" and all(map(self._is_index, self.loop.arrays(self.loop.operations[x.number])))

    def _keep(self, x: Ref, name: str, stage: int) -> None:
        """Keeps a value of an earlier stage in a tile."""
        register = c.type_of(self.loop.dtype(x)).register
        if f"{name}_" not in self.tiles:
            self.tiles[f"{name}_"] = register
            self.body[self.loop.known(x)].append(f"{name}_[j] = {name};")
        _once(self.loads[stage], f"const {register} {name} = {name}_[j];")

    # --- operations ---------------------------------------------------------------------------------------------------

    def _operation(self, operation: Operation, name: str) -> None:
        stage = operation.stage
        if operation.name == PAIR:
            self.tiles[f"{name}_"] = "uint8_t"  # from which `_store` packs bytes
            self.body[stage].append(f"{name}_[j] = {self._name(operation.inputs[0], stage)} & 15;")
        elif operation.name == UNPAIR:
            self._unpair(operation, name)
        elif operation.name in c.OPERATORS:
            read = self._accumulate(operation.name, operation.inputs[0], name, stage)
            self.before[stage + 1].append(f"const {c.type_of(operation.dtype).register} {name} = {read};")
        else:
            lines = self.before if operation.scope == BLOCK else self.body
            lines[stage].append(self._definition(operation, name, stage))

    def _definition(self, operation: Operation, name: str, stage: int) -> str:
        args = [self._name(x, stage) for x in operation.inputs]
        dtype = self.loop.dtype(operation.inputs[0]) if operation.inputs else ""
        return f"const {c.type_of(operation.dtype).register} {name} = {c.expression(operation, dtype, args)};"

    def _unpair(self, operation: Operation, name: str) -> None:
        """Unpacks four-bit values from bytes into a tile."""
        (x,) = self.loop.arrays(operation)
        self.tiles[f"{name}_"] = "int8_t"
        signed = operation.dtype == "int8"
        low, high = (f"({half} ^ 8) - 8" if signed else half for half in ("(c & 15)", "(c >> 4)"))
        self.before[0] += [
            "for (int k = 0; k < BLOCK / 2; k++) {",
            f"  const uint8_t c = X{x.number}[o / 2 + k];",
            f"  {name}_[2 * k] = {low}, {name}_[2 * k + 1] = {high};",
            "}",
        ]
        self.loads[0].append(f"const {c.type_of(operation.dtype).register} {name} = {name}_[j];")

    def _accumulate(self, reduction: str, x: Operand, name: str, stage: int) -> str:
        """Reduces `x` in the inner loop of `stage`. Returns the expression of the result after it."""
        operator, dtype = c.OPERATORS[reduction], self.loop.dtype(x)
        value, result = self._name(x, stage), f"{name}_a"
        if dtype == "bool" and operator in ("&", "|"):
            kind, start, text, read = "int", int(operator == "&"), f"{result} {operator}= {value};", result
        elif dtype in ("float32", "float64") and operator == "+":
            kind, start, text, read = "double", 0, f"{result} += (double){value};", result
        elif dtype == "float32" and operator == "max" and c.is_absolute(self.loop, x):
            # Without signs, floats are ordered as their bits are, and NaN is the greatest.
            kind, start, read = "uint32_t", 0, f"as_float({result})"
            text = f"{result} = MAX(as_bits({value}), {result});"
        else:
            raise c.Unsupported(f"{reduction} of {dtype}")
        self.before[stage].append(f"{kind} {result} = {start};")
        self.body[stage].append(text)
        self.reduced[stage].append((operator, result))
        return read

    # --- results ------------------------------------------------------------------------------------------------------

    def _store(self, k: int, y: Output) -> None:
        stage, store = self.loop.known(y.source), c.type_of(y.dtype).store
        if y.scope == PAIRED and isinstance(y.source, Ref):
            tile = f"v{y.source.number}_"
            both = f"{tile}[2 * k] | {tile}[2 * k + 1] << 4"
            self.after[stage].append(f"for (int k = 0; k < BLOCK / 2; k++) Y{k}[o / 2 + k] = {both};")
            return
        lines, at = (self.before, "o / BLOCK") if y.scope == BLOCK else (self.body, "o + j")
        lines[stage].append(f"Y{k}[{at}] = {store.format(self._name(y.source, stage))};")

    def _total(self, k: int, total: Total) -> None:
        """Adds the loop's part to a total, which the runtime combines."""
        stage = self.loop.known(total.source)
        read = self._accumulate(total.name, total.source, f"t{k}", stage)
        self.after[stage].append(f"R[{k}] = {ADD[c.OPERATORS[total.name]].format(k=k, x=f'(double){read}')};")

    # --- source -------------------------------------------------------------------------------------------------------

    def source(self) -> str:
        loop = self.loop
        inputs, outputs = ([c.type_of(x.dtype).memory for x in side] for side in (loop.inputs, loop.outputs))
        lines = [*self._layout(), '#include "runtime.h"', ""]
        lines.append("static void loop(int64_t n, int64_t start, const uint32_t* S, char** X, char** Y, double* R) {")
        lines += [f"  {text}" for text in c.scalars(loop)]
        lines += [f"  const {kind}* X{k} = (const {kind}*)X[{k}];" for k, kind in enumerate(inputs)]
        lines += [f"  {kind}* Y{k} = ({kind}*)Y[{k}];" for k, kind in enumerate(outputs)]
        step = "BLOCK" if loop.block else "n"
        lines += [f"  for (int64_t o = 0; o < n; o += {step}) {{", f"    const int64_t h = {step};"]
        lines += [f"    {kind} {name}[BLOCK] __attribute__((aligned(64)));" for name, kind in self.tiles.items()]
        for stage in sorted({*self.before, *self.body, *self.after}):
            lines += [f"    {text}" for text in self.before[stage]]
            if self.body[stage]:
                clauses = "".join(f" reduction({operator}:{name})" for operator, name in self.reduced[stage])
                lines += [f"    PRAGMA(omp simd{clauses})", "    for (int64_t j = 0; j < h; j++) {"]
                lines += [f"      {text}" for text in (*self.loads[stage], *self.body[stage])]
                lines.append("    }")
            lines += [f"    {text}" for text in self.after[stage]]
        return "\n".join([*lines, "  }", "}", ""])

    def _layout(self) -> Iterator[str]:
        """Render the constants of `runtime.h`: the numbers of arrays and scalars, and where the arrays are stored."""
        loop = self.loop
        sides = ("X", loop.inputs), ("Y", loop.outputs)
        buffers = {x.buffer for x in (*loop.inputs, *loop.outputs)} - {None}
        if buffers:
            yield f"#define BUFFERS {len(buffers)}"
            for side, operands in sides:
                yield _array(f"BUFFER_{side}", ("-1" if x.buffer is None else x.buffer for x in operands), "-1")
        if loop.rows:
            yield f"#define ROWS {c.type_of(loop.rows).memory}"
            yield _array("GATHERED_X", (int(x.gathered) for x in loop.inputs), "0")
        yield f"#define BLOCK {loop.block or 1}"
        yield f"#define UNIT {loop.block or UNIT}"
        words = sum(c.type_of(x.dtype).words for x in loop.scalars)
        yield f"enum {{ NX = {len(loop.inputs)}, NY = {len(loop.outputs)}, NS = {words}, NR = {len(loop.totals)} }};"
        share = {BLOCK: loop.block, PAIRED: 2}
        for side, operands in sides:
            yield _array(f"SIZES_{side}", (f"sizeof({c.type_of(x.dtype).memory})" for x in operands), "0")
            yield _array(f"ITEMS_{side}", (share.get(x.scope, 1) for x in operands), "1")
        operators = [c.OPERATORS[total.name] for total in loop.totals]
        yield _array("STARTS", (STARTS[o] for o in operators), "0")
        yield _array("COMBINE", (COMBINE[o] for o in operators), "SUM")
        yield f"typedef {'double' if any(t.dtype == 'float64' for t in loop.totals) else 'float'} result_t;"
        if any(operation.name in c.LIBRARY for operation in loop.operations):
            yield "#define NEEDS_LIBRARY"


def _array(name: str, items: Iterable[object], none: str) -> str:
    return f"#define {name} {{ {', '.join(map(str, items)) or none} }}"


def _once(lines: list[str], text: str) -> None:
    if text not in lines:
        lines.append(text)
