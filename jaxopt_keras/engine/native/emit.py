"""C source for one loop over the elements of an array, from its equations.

A value is per element, or per block of so many elements in a row (the scales of quantized slots). Without blocks there
is one loop. With them the loop runs block by block; a reduction over a block ends a stage, and what a later stage needs
of an earlier one waits in a small array. Scalars come in as data: only numbers that stand in the rule stand in the
source.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from jaxopt_keras.engine.native import vocabulary as c
from jaxopt_keras.engine.native.trace import INTRINSICS, Atom, Constant, Equation, Value, is_scalar

CHEAP = ("abs", "neg", "min", "lt", "gt", "convert_element_type", "bitcast_convert_type")
SAME = ("reshape", "squeeze", "expand_dims", "broadcast_in_dim", "copy", "copy_p", "stop_gradient")
UNIT = 4096  # elements that one thread takes at least
KEPT = 2**15  # elements that wait on a thread's stack at most, which on some systems has 512 KiB


class Place(NamedTuple):
    """Where an array lies in a buffer with others (`pools.py`)."""

    pool: Value
    start: int  # in elements


@dataclass
class Loop:
    """A loop in C, and what stands for its parameters: equal sources run as one call."""

    source: str
    inputs: list[Value]
    scalars: list[Value]
    outputs: list[Value]
    sums: list[Value]
    count: int  # of elements
    aliases: dict[int, int] | None = None  # input -> output that must have its memory; None: there is a choice
    places: dict[Value, Place] = field(default_factory=dict)  # of inputs and outputs that lie in pools

    @property
    def pools(self) -> list[Value]:
        return [*dict.fromkeys(place.pool for place in self.places.values())]

    def apart(self, values: list[Value]) -> list[Value]:
        """Those that are buffers of their own."""
        return [x for x in values if x not in self.places]


@dataclass
class Emitter:
    """Writes the loop over `count` elements that computes `outputs`, and the reductions `sums` to scalars.

    `block`: how many elements have one value between them; None without such values.
    `alias`: what a value is another name for.
    """

    count: int
    block: int | None
    alias: dict[Value, Atom]
    inputs: list[Value] = field(default_factory=list)
    scalars: list[Value] = field(default_factory=list)
    names: dict[Any, str] = field(default_factory=dict)
    stage: dict[Value, int] = field(default_factory=dict)  # in which a value is known
    # By stage: what is done once before the loop, at the start of its body, in its body, and once after it.
    before: dict[int, list[str]] = field(default_factory=dict)
    loads: dict[int, list[str]] = field(default_factory=dict)
    body: dict[int, list[str]] = field(default_factory=dict)
    after: dict[int, list[str]] = field(default_factory=dict)
    reduced: dict[int, list[tuple[str, str]]] = field(default_factory=dict)  # by stage: (operator, variable)
    tiles: dict[str, str] = field(default_factory=dict)  # small arrays and their types
    maker: dict[Value, Equation] = field(default_factory=dict)
    pairs: dict[Value, str] = field(default_factory=dict)  # codes, two to a byte, and the small array they are in
    needs_library: bool = False

    def loop(self, equations: list[Equation], outputs: list[Value], sums: list[Equation]) -> Loop:
        self.maker = {equation.outputs[0]: equation for equation in equations}
        for equation in self._needed(equations, [*outputs, *(s.inputs[0] for s in sums)]):
            self._write(equation)
        for k, value in enumerate(outputs):
            self._store(k, value)
        for k, equation in enumerate(sums):
            self._total(k, equation)
        if len(self.tiles) * (self.block or 0) > KEPT:
            raise c.Unsupported("blocks too long to keep")
        totals = [s.outputs[0] for s in sums]
        return Loop(self._text(outputs, sums), self.inputs, self.scalars, outputs, totals, self.count)

    # --- values -----------------------------------------------------------------------------------------------------

    def base(self, x: Atom) -> Atom:
        while isinstance(x, Value) and x in self.alias:
            x = self.alias[x]
        return x

    def _needed(self, equations: list[Equation], targets: Iterable[Atom]) -> list[Equation]:
        needed = {self.base(x) for x in targets}
        kept = []
        for equation in reversed(equations):
            if equation.outputs[0] in needed:
                kept.append(equation)
                needed |= {self.base(x) for x in equation.inputs}
        return kept[::-1]

    def per_block(self, x: Atom) -> bool:
        return self.block is not None and math.prod(x.shape) * self.block == self.count

    def _known(self, x: Atom) -> int:
        """The stage in which `x` is known."""
        x = self.base(x)
        return self.stage.get(x, 0) if isinstance(x, Value) else 0

    def name(self, x: Atom, stage: int) -> str:
        """How the source calls `x` in the loop of `stage`."""
        x = self.base(x)
        if isinstance(x, Constant):
            return c.literal(x.value)
        if x not in self.names:
            self._enter(x)
        if is_scalar(x) or self.per_block(x) or self.stage[x] == stage:
            return self.names[x]
        return self._repeated(x, stage) if self._is_cheap(x) else self._kept(x, stage)

    def _enter(self, x: Value) -> None:
        """A value that comes from outside."""
        c.type_of(x)
        if is_scalar(x):
            self.names[x] = f"s{len(self.scalars)}"
            self.scalars.append(x)
            return
        k = len(self.inputs)
        self.inputs.append(x)
        self.names[x], self.stage[x] = f"x{k}", 0
        where, place = (self.before, "o / BLOCK") if self.per_block(x) else (self.loads, "o + j")
        add(where, 0, f"const {c.type_of(x).register} x{k} = {c.type_of(x).load.format(f'X{k}[{place}]')};")

    def _is_cheap(self, x: Value) -> bool:
        """Whether it costs less to compute `x` once more than to keep it: it comes of one array at most."""
        maker = self.maker.get(x)
        arrays = [self.base(a) for a in maker.arrays] if maker else []
        if (
            maker is None
            or maker.name in (*INTRINSICS[1:], *c.REDUCTIONS)
            or any(not is_scalar(a) and self.per_block(a) for a in arrays)
        ):
            return False
        return (maker.name in CHEAP and len(arrays) == 1) or all(is_scalar(a) or self._is_index(a) for a in arrays)

    def _is_index(self, x: Atom) -> bool:
        """Whether `x` comes of the element's place and scalars alone."""
        maker = self.maker.get(x) if isinstance(x, Value) else None
        return maker is not None and all(is_scalar(a) or self._is_index(a) for a in map(self.base, maker.arrays))

    def _repeated(self, x: Value, stage: int) -> str:
        """A value of an earlier stage, computed once more."""
        text = f"const {c.type_of(x).register} {self.names[x]} = {self._expression(self.maker[x], stage)};"
        if text not in self.body.get(stage, []):
            add(self.body, stage, text)
        return self.names[x]

    def _kept(self, x: Value, stage: int) -> str:
        """A value of an earlier stage: it waits in a small array."""
        name, register = self.names[x], c.type_of(x).register
        if f"{name}_" not in self.tiles:
            self.tiles[f"{name}_"] = register
            add(self.body, self.stage[x], f"{name}_[j] = {name};")
        line = f"const {register} {name} = {name}_[j];"
        if line not in self.loads.get(stage, []):
            add(self.loads, stage, line)
        return name

    # --- equations --------------------------------------------------------------------------------------------------

    def _write(self, equation: Equation) -> None:
        out, name = equation.outputs[0], f"v{len(self.names)}"
        stage = max((self._known(x) for x in equation.inputs), default=0)
        if equation.name == "pairs":
            self._pair(equation, name, stage)
        elif equation.name == "unpaired":
            self._unpair(equation, name)
        elif equation.name in c.REDUCTIONS:
            read = self._accumulate(equation, name, stage)
            stage += 1
            add(self.before, stage, f"const {c.type_of(out).register} {name} = {read};")
        else:
            text = f"const {c.type_of(out).register} {name} = {self._expression(equation, stage)};"
            add(self.before if self.per_block(out) else self.body, stage, text)
        self.names[out], self.stage[out] = name, stage

    def _expression(self, equation: Equation, stage: int) -> str:
        out, name = equation.outputs[0], equation.name
        if name == "flat_index":
            return "(uint32_t)(start + o + j)"
        dtype = equation.inputs[0].dtype
        suffix = "" if dtype == "float64" else "f"
        args = [self.name(x, stage) for x in equation.inputs]
        if name == "convert_element_type":
            return c.converted(args[0], dtype, out.dtype)
        if name == "bitcast_convert_type":
            return c.bitcast(args[0], dtype, out.dtype)
        if name == "integer_pow" and dtype in c.FLOATS and 0 < abs(equation.params["y"]) <= 4:
            product = " * ".join([args[0]] * abs(equation.params["y"]))
            text = product if equation.params["y"] > 0 else f"1 / ({product})"
        elif name == "round" and dtype in c.FLOATS:
            nearest_even = int(equation.params["rounding_method"]) == 1
            text = f"{'rint' if nearest_even else 'round'}{suffix}({args[0]})"
        elif name == "pow" and equation.inputs[1] == Constant(np.float32(0.5)):
            text = f"sqrt{suffix}({args[0]})"
        elif name in c.ANY or (name in c.FLOATING and dtype in c.FLOATS):
            text = (c.ANY | c.FLOATING)[name].format(*args, f=suffix)
            self.needs_library |= name in c.LIBRARY
        elif name in c.WHOLE:
            text = c.WHOLE[name].format(*args)
        elif name == "not":
            text = f"!{args[0]}" if dtype == "bool" else f"~{args[0]}"
        elif name in c.SHIFTS:
            text = self._shift(equation, args)
        else:
            raise c.Unsupported(f"{name} of {dtype}")
        return c.type_of(out).rounded.format(text)

    def _shift(self, equation: Equation, args: list[str]) -> str:
        by, dtype = self.base(equation.inputs[1]), equation.outputs[0].dtype
        if not isinstance(by, Constant) or not 0 <= int(by.value) < 8 * np.dtype(dtype).itemsize:
            raise c.Unsupported("shift by a number that is not known")
        logical = equation.name == "shift_right_logical" and not dtype.startswith("u")
        left = f"(u{dtype}_t){args[0]}" if logical else args[0]
        return f"{left} {c.SHIFTS[equation.name]} {int(by.value)}"

    def _accumulate(self, equation: Equation, name: str, stage: int) -> str:
        """Reduces over the loop of `stage`; how the result is read after it."""
        x, operator, dtype = self.base(equation.inputs[0]), c.REDUCTIONS[equation.name], equation.inputs[0].dtype
        value, result = self.name(x, stage), f"{name}_a"
        maker = self.maker.get(x) if isinstance(x, Value) else None
        if dtype == "bool" and operator in ("&", "|"):
            kind, start, text, read = "int", int(operator == "&"), f"{result} {operator}= {value};", result
        elif dtype in ("float32", "float64") and operator == "+":
            kind, start, text, read = "double", 0, f"{result} += (double){value};", result
        elif dtype == "float32" and operator == "max" and maker is not None and maker.name == "abs":
            # Without signs the order of floats is the order of their bits, and NaN is the greatest.
            kind, start, read = "uint32_t", 0, f"as_float({result})"
            text = f"{result} = MAX(as_bits({value}), {result});"
        else:
            raise c.Unsupported(f"{equation.name} of {dtype}")
        add(self.before, stage, f"{kind} {result} = {start};")
        add(self.body, stage, text)
        self.reduced.setdefault(stage, []).append((operator, result))
        return read

    def _unpair(self, equation: Equation, name: str) -> None:
        """Codes of four bits out of bytes, into a small array."""
        x = self.base(equation.inputs[0])
        if x in self.names or not isinstance(x, Value):
            raise c.Unsupported("unpaired codes that are used otherwise")
        k, signed = len(self.inputs), equation.outputs[0].dtype == "int8"
        self.inputs.append(x)
        self.names[x], self.pairs[x] = f"x{k}", f"{name}_"
        self.tiles[f"{name}_"] = "int8_t"
        low, high = (f"({half} ^ 8) - 8" if signed else half for half in ("(c & 15)", "(c >> 4)"))
        add(self.before, 0, "for (int k = 0; k < BLOCK / 2; k++) {")
        add(self.before, 0, f"  const uint8_t c = X{k}[o / 2 + k];")
        add(self.before, 0, f"  {name}_[2 * k] = {low}, {name}_[2 * k + 1] = {high};")
        add(self.before, 0, "}")
        add(self.loads, 0, f"const {c.type_of(equation.outputs[0]).register} {name} = {name}_[j];")

    def _pair(self, equation: Equation, name: str, stage: int) -> None:
        """Codes of four bits into a small array, from where `_store` puts them into bytes."""
        self.tiles[f"{name}_"] = "uint8_t"
        self.pairs[equation.outputs[0]] = f"{name}_"
        add(self.body, stage, f"{name}_[j] = {self.name(equation.inputs[0], stage)} & 15;")

    # --- results ----------------------------------------------------------------------------------------------------

    def _store(self, k: int, value: Value) -> None:
        x = self.base(value)
        stage, store = self._known(x), c.type_of(value).store
        if x in self.pairs:
            tile = self.pairs[x]
            both = f"{tile}[2 * k] | {tile}[2 * k + 1] << 4"
            add(self.after, stage, f"for (int k = 0; k < BLOCK / 2; k++) Y{k}[o / 2 + k] = {both};")
            return
        where, place = (self.before, "o / BLOCK") if self.per_block(value) else (self.body, "o + j")
        add(where, stage, f"Y{k}[{place}] = {store.format(self.name(x, stage))};")

    def _total(self, k: int, equation: Equation) -> None:
        """A reduction over the whole array: each call of the loop adds its part to what the runtime combines."""
        stage = self._known(equation.inputs[0])
        read = self._accumulate(equation, f"t{k}", stage)
        operator = c.REDUCTIONS[equation.name]
        combined = {"+": "R[{k}] + {x}", "max": "MAX({x}, R[{k}])", "&": "R[{k}] && {x}", "|": "R[{k}] || {x}"}
        add(self.after, stage, f"R[{k}] = {combined[operator].format(k=k, x=f'(double){read}')};")

    def _text(self, outputs: list[Value], sums: list[Equation]) -> str:
        words = sum(c.type_of(x).words for x in self.scalars)
        tile = "BLOCK" if self.block else "n"
        layout = {"X": self.inputs, "Y": outputs}
        lines = [f"#define BLOCK {self.block or 1}", f"#define UNIT {self.block or UNIT}"]
        lines += [f"enum {{ NX = {len(self.inputs)}, NY = {len(outputs)}, NS = {words}, NR = {len(sums)} }};"]
        for side, values in layout.items():
            sizes = ", ".join(f"sizeof({c.type_of(x).memory})" for x in values) or "0"
            items = ", ".join(str(self._elements_of_an_item(x)) for x in values) or "1"
            lines.append(f"#define SIZES_{side} {{ {sizes} }}\n#define ITEMS_{side} {{ {items} }}")
        operators = [c.REDUCTIONS[e.name] for e in sums]
        starts = {"+": "0", "max": "-INFINITY", "&": "1", "|": "0"}
        combine = {"+": "SUM", "max": "GREATEST", "&": "ALL", "|": "SOME"}
        lines.append(f"#define STARTS {{ {', '.join(starts[o] for o in operators) or '0'} }}")
        lines.append(f"#define COMBINE {{ {', '.join(combine[o] for o in operators) or 'SUM'} }}")
        double = any(e.outputs[0].dtype == "float64" for e in sums)
        lines.append(f"typedef {'double' if double else 'float'} result_t;")
        lines += ["#define NEEDS_LIBRARY"] if self.needs_library else []
        lines += ['#include "runtime.h"', ""]
        lines.append("static void loop(int64_t n, int64_t start, const uint32_t* S, char** X, char** Y, double* R) {")
        lines += [f"  {text}" for text in self._parameters()]
        lines += [
            f"  const {c.type_of(x).memory}* X{k} = (const {c.type_of(x).memory}*)X[{k}];"
            for k, x in enumerate(self.inputs)
        ]
        lines += [f"  {c.type_of(y).memory}* Y{k} = ({c.type_of(y).memory}*)Y[{k}];" for k, y in enumerate(outputs)]
        lines.append(f"  for (int64_t o = 0; o < n; o += {tile}) {{")
        lines.append(f"    const int64_t h = {tile};")
        lines += [f"    {kind} {name}[BLOCK] __attribute__((aligned(64)));" for name, kind in self.tiles.items()]
        for stage in sorted({*self.before, *self.body, *self.after}):
            lines += [f"    {text}" for text in self.before.get(stage, [])]
            if stage in self.body:
                clauses = "".join(f" reduction({operator}:{name})" for operator, name in self.reduced.get(stage, []))
                lines.append(f"    PRAGMA(omp simd{clauses})")
                lines.append("    for (int64_t j = 0; j < h; j++) {")
                lines += [f"      {text}" for text in (*self.loads.get(stage, []), *self.body[stage])]
                lines.append("    }")
            lines += [f"    {text}" for text in self.after.get(stage, [])]
        return "\n".join([*lines, "  }", "}", ""])

    def _elements_of_an_item(self, x: Value) -> int:
        return 2 if self.base(x) in self.pairs else (self.block or 1) if self.per_block(x) else 1

    def _parameters(self) -> Iterable[str]:
        k = 0
        for i, x in enumerate(self.scalars):
            kind = c.type_of(x)
            yield f"const {kind.register} s{i} = {kind.scalar.format(register=kind.register, k=k)};"
            k += kind.words


def add(lines: dict[int, list[str]], stage: int, text: str) -> None:
    lines.setdefault(stage, []).append(text)
