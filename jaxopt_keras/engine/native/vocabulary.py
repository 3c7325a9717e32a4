"""Types and operations of XLA as C writes them: the words that loops are made of."""

import math
from typing import Any, NamedTuple

import numpy as np

from jaxopt_keras.engine.native.trace import Atom


class Unsupported(Exception):
    """What has no form in C here. The message is the reason, for `describe`."""


class Type(NamedTuple):
    memory: str  # in the buffers
    register: str  # in the loop
    load: str = "{}"
    store: str = "{}"
    rounded: str = "{}"  # the result of an operation, where the register is wider
    words: int = 1  # of 32 bits, as a scalar
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
    "bool": Type("uint8_t", "int"),
    **{f"{u}int{n}": Type(f"{u}int{n}_t", f"{u}int{n}_t") for n in (8, 16, 32) for u in ("", "u")},
    **{f"{u}int64": Type(f"{u}int64_t", f"{u}int64_t", words=2, scalar="as_int64(S + {k})") for u in ("", "u")},
}
FLOATS = ("float32", "float64", "bfloat16", "float16")

# `{f}` ends the name of a function of C's library for a float, and is nothing for a double.
ANY = {
    "add": "{0} + {1}", "add_any": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "neg": "-{0}",
    "max": "MAX({0}, {1})", "min": "MIN({0}, {1})", "clamp": "MIN(MAX({1}, {0}), {2})", "square": "{0} * {0}",
    "gt": "{0} > {1}", "lt": "{0} < {1}", "ge": "{0} >= {1}", "le": "{0} <= {1}", "eq": "{0} == {1}",
    "ne": "{0} != {1}", "select_n": "{0} ? {2} : {1}",
}  # fmt: skip
FLOATING = {
    "div": "{0} / {1}", "abs": "fabs{f}({0})", "sign": "SIGN({0})", "sqrt": "sqrt{f}({0})", "floor": "floor{f}({0})",
    "ceil": "ceil{f}({0})", "rsqrt": "1 / sqrt{f}({0})", "is_finite": "(fabs{f}({0}) <= MAX_OF({0}))",
    "exp": "exp{f}({0})", "log": "log{f}({0})", "expm1": "expm1{f}({0})", "log1p": "log1p{f}({0})",
    "tanh": "tanh{f}({0})", "cbrt": "cbrt{f}({0})", "pow": "pow{f}({0}, {1})",
}  # fmt: skip
WHOLE = {"and": "{0} & {1}", "or": "{0} | {1}", "xor": "{0} ^ {1}", "abs": "{0} < 0 ? -{0} : {0}"}
SHIFTS = {"shift_right_logical": ">>", "shift_left": "<<", "shift_right_arithmetic": ">>"}
LIBRARY = ("exp", "log", "expm1", "log1p", "tanh", "cbrt", "pow")  # which have vector forms in glibc
REDUCTIONS = {"reduce_sum": "+", "reduce_max": "max", "reduce_min": "min", "reduce_and": "&", "reduce_or": "|"}


def type_of(x: Atom) -> Type:
    if x.dtype not in TYPES:
        raise Unsupported(x.dtype)
    return TYPES[x.dtype]


def literal(value: Any) -> str:
    """A number as C writes it, exactly."""
    kind = TYPES.get(str(value.dtype))
    if kind is None:
        raise Unsupported(str(value.dtype))
    if str(value.dtype) not in FLOATS:
        return f"(({kind.register}){int(value)}{'LL' if kind.words == 2 else 'u' if value > 0 else ''})"
    number = float(value)
    if math.isnan(number):
        return "NAN"
    if math.isinf(number):
        return "INFINITY" if number > 0 else "(-INFINITY)"
    return f"({number.hex()}{'' if kind.words == 2 else 'f'})"


def converted(x: str, old: str, new: str) -> str:
    """A conversion, which in XLA saturates and takes NaN to 0."""
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
