"""XLA's types and operations in C and CUDA C++: the expressions that the source of a loop consists of."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxopt_keras.engine.native.ir import INDEX, Constant
from jaxopt_keras.engine.native.loop import Loop, Operand, Operation, Ref, Unsupported


class Type(NamedTuple):
    memory: str  # the C type in arrays
    register: str  # the C type of variables
    load: str = "{}"
    store: str = "{}"
    rounded: str = "{}"  # rounds the result of an operation, if the register is wider than the type
    words: int = 1  # of 32 bits, that a scalar takes
    scalar: str = "({register})S[{k}]"


TYPES = {
    "float32": Type("float", "float", scalar="as_float(S[{k}])"),
    "float64": Type("double", "double", words=2, scalar="as_double(S + {k})"),
    "bfloat16": Type(
        "uint16_t", "float", "from_bf16({})", "upper_half({})", "from_bf16(to_bf16({}))", scalar="as_float(S[{k}])"
    ),
    "float16": Type(
        "uint16_t", "float", "from_f16({})", "to_f16({})", "from_f16(to_f16({}))", scalar="as_float(S[{k}])"
    ),
    "float8_e4m3fn": Type(
        "uint8_t", "float", "from_f8({})", "to_f8({})", "from_f8(to_f8({}))", scalar="as_float(S[{k}])"
    ),
    "bool": Type("uint8_t", "int"),
    **{f"{u}int{n}": Type(f"{u}int{n}_t", f"{u}int{n}_t") for n in (8, 16, 32) for u in ("", "u")},
    **{f"{u}int64": Type(f"{u}int64_t", f"{u}int64_t", words=2, scalar="as_int64(S + {k})") for u in ("", "u")},
}
FLOATS = ("float32", "float64", "bfloat16", "float16", "float8_e4m3fn")

# `{f}` is the suffix of a library function: "f" for a float, nothing for a double.
ANY = {
    "add": "{0} + {1}", "add_any": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "neg": "-{0}",
    "max": "MAX({0}, {1})", "min": "MIN({0}, {1})", "clamp": "MIN(MAX({1}, {0}), {2})", "square": "{0} * {0}",
    "gt": "{0} > {1}", "lt": "{0} < {1}", "ge": "{0} >= {1}", "le": "{0} <= {1}", "eq": "{0} == {1}",
    "ne": "{0} != {1}", "select_n": "{0} ? {2} : {1}", "optimization_barrier": "{0}",
}  # fmt: skip
FLOATING = {
    "div": "{0} / {1}", "abs": "fabs{f}({0})", "sign": "SIGN({0})", "sqrt": "sqrt{f}({0})", "floor": "floor{f}({0})",
    "ceil": "ceil{f}({0})", "rsqrt": "1 / sqrt{f}({0})", "is_finite": "(fabs{f}({0}) <= MAX_OF({0}))",
    "exp": "exp{f}({0})", "log": "log{f}({0})", "expm1": "expm1{f}({0})", "log1p": "log1p{f}({0})",
    "tanh": "tanh{f}({0})", "cos": "cos{f}({0})", "cbrt": "cbrt{f}({0})", "pow": "pow{f}({0}, {1})",
    "rint": "rint{f}({0})", "round": "round{f}({0})",
}  # fmt: skip
WHOLE = {"and": "{0} & {1}", "or": "{0} | {1}", "xor": "{0} ^ {1}", "abs": "{0} < 0 ? -{0} : {0}"}
SHIFTS = {"shift_right_logical": ">>", "shift_left": "<<", "shift_right_arithmetic": ">>"}
LIBRARY = ("exp", "log", "expm1", "log1p", "tanh", "cbrt", "pow")  # of these, glibc has vector forms
OPERATORS = {"reduce_sum": "+", "reduce_max": "max", "reduce_min": "min", "reduce_and": "&", "reduce_or": "|"}


def scalars(loop: Loop) -> Iterator[str]:
    """The lines that read the scalars of a loop from its words."""
    k = 0
    for i, x in enumerate(loop.scalars):
        kind = type_of(x.dtype)
        yield f"const {kind.register} s{i} = {kind.scalar.format(register=kind.register, k=k)};"
        k += kind.words


def is_absolute(loop: Loop, x: Operand) -> bool:
    """Whether `x` has no sign."""
    return isinstance(x, Ref) and x.kind == "v" and loop.operations[x.number].name == "abs"


def type_of(dtype: str) -> Type:
    if dtype not in TYPES:
        raise Unsupported(dtype)
    return TYPES[dtype]


def literal(x: Constant) -> str:
    """The exact number in C."""
    kind, value = type_of(x.dtype), x.value
    if x.dtype not in FLOATS:
        return f"(({kind.register}){int(value)}{'LL' if kind.words == 2 else 'u' if value > 0 else ''})"
    number = float(value)
    if math.isnan(number):
        return "NAN"
    if math.isinf(number):
        return "INFINITY" if number > 0 else "(-INFINITY)"
    return f"({number.hex()}{'' if kind.words == 2 else 'f'})"


def expression(operation: Operation, dtype: str, args: list[str]) -> str:
    """The C expression of an operation.

    Args:
        dtype: of its first input.
        args: the names of its inputs in C.

    Raises:
        Unsupported: if there is none.
    """
    name, out = operation.name, operation.dtype
    if name == INDEX:
        return "(uint32_t)(start + o + j)"
    if name == "convert_element_type":
        return converted(args[0], dtype, out)
    if name == "bitcast_convert_type":
        return bitcast(args[0], dtype, out)
    if name in SHIFTS:
        return shift(operation, args[0])
    floating = FLOATING if dtype in FLOATS else {}
    if name == "integer_pow" and floating:
        text = power(operation.inputs[1])
    elif name == "not":
        text = "!{0}" if dtype == "bool" else "~{0}"
    else:
        text = ANY.get(name) or floating.get(name) or WHOLE.get(name, "")
    if not text:
        raise Unsupported(f"{name} of {dtype}")
    return type_of(out).rounded.format(text.format(*args, f="" if dtype == "float64" else "f"))


def power(by: object) -> str:
    """A small whole power as products; "" for a large one."""
    n = int(by.value) if isinstance(by, Constant) else 0
    product = " * ".join(["{0}"] * abs(n))
    return "" if not 0 < abs(n) <= 4 else product if n > 0 else f"1 / ({product})"


def shift(operation: Operation, x: str) -> str:
    by, dtype = operation.inputs[1], operation.dtype
    if not isinstance(by, Constant) or not 0 <= int(by.value) < 8 * np.dtype(dtype).itemsize:
        raise Unsupported("shift by a number that is not known")
    logical = operation.name == "shift_right_logical" and not dtype.startswith("u")
    return f"{f'(u{dtype}_t){x}' if logical else x} {SHIFTS[operation.name]} {int(by.value)}"


def converted(x: str, old: str, new: str) -> str:
    """A conversion, which saturates as XLA's does, and makes NaN 0."""
    kind = TYPES[new]
    if new == "bool":
        return f"{x} != 0"
    if old in FLOATS and new not in FLOATS:
        bits = 8 * np.dtype(new).itemsize
        if bits > 16:
            raise Unsupported(f"conversion of {old} to {new}")
        low, high = (0, 2**bits - 1) if new.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return f"({kind.register})TO_INT({x}, {low}, {high})"
    return kind.rounded.format(f"({kind.register}){x}") if new in FLOATS else f"({kind.register}){x}"


def bitcast(x: str, old: str, new: str) -> str:
    forms = {
        ("float32", "uint32"): "as_bits({})", ("float32", "int32"): "(int32_t)as_bits({})",
        ("uint32", "float32"): "as_float({})", ("int32", "float32"): "as_float((uint32_t){})",
        ("uint16", "bfloat16"): "from_bf16({})", ("bfloat16", "uint16"): "upper_half({})",
        ("float16", "uint16"): "to_f16({})",
        ("uint32", "int32"): "(int32_t){}", ("int32", "uint32"): "(uint32_t){}",
    }  # fmt: skip
    if (old, new) not in forms:
        raise Unsupported(f"bitcast of {old} to {new}")
    return forms[old, new].format(x)
