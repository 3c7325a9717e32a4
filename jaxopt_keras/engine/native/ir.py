"""The engine's input: a function as a flat list of equations. Calls are inlined, dead ones and duplicates removed."""

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Jitted helpers that the engine knows by name and does not inline. In loops: the index of each element
# (storage/hash_rng.py), and four-bit values packed in bytes (storage/blockwise.py).
INDEX, PAIR, UNPAIR = "flat_index", "pack_nibbles", "unpack_nibbles"
INTRINSICS = (INDEX, PAIR, UNPAIR)
# Around loops: a primitive that splits a packed buffer into arrays, and a helper that concatenates them
# (packing/trees.py).
UNPACK, PACK = "unpack_buffer", "pack_buffer"
WRITE_COLUMNS = "write_columns"  # and one that writes rows of a narrow table on a TPU (engine/rows.py)
LOSS_AND_GRADIENTS = "loss_and_gradients"  # and the user's loss function (engine/second.py)
_KEPT = (*INTRINSICS, PACK, WRITE_COLUMNS, LOSS_AND_GRADIENTS)
_CALLS = ("jit", "pjit", "closed_call", "core_call")


_name = functools.cache(str)  # of a dtype, which NumPy writes anew each time


class Value:
    """The result of an equation, or an input."""

    __slots__ = ("aval", "dtype", "shape", "size")

    def __init__(self, aval: Any) -> None:
        self.aval, self.shape, self.dtype = aval, aval.shape, _name(aval.dtype)
        self.size = math.prod(aval.shape)


class Constant(NamedTuple):
    """A literal number in the program. Constants are equal if their dtypes and bits are, NaN and -0.0 too."""

    dtype: str
    bits: bytes

    @classmethod
    def of(cls, value: Any) -> "Constant":
        """The constant for a NumPy scalar."""
        return cls(_name(value.dtype), value.tobytes())

    @property
    def value(self) -> Any:
        return np.frombuffer(self.bits, jnp.dtype(self.dtype))[0]

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    @property
    def size(self) -> int:
        return 1


Atom = Value | Constant


def is_scalar(x: Atom) -> bool:
    """Whether `x` has one element, whatever its shape. XLA computes scalars."""
    return x.size == 1


@dataclass(eq=False)
class Equation:
    """outputs = primitive(*inputs, **params)"""

    primitive: Any
    params: dict[str, Any]
    inputs: list[Atom]
    outputs: list[Value]
    effects: Any
    context: Any

    @functools.cached_property
    def name(self) -> str:
        """The name of the primitive, or of the intrinsic that it calls."""
        return self.params["name"] if self.primitive.name in _CALLS else self.primitive.name

    @functools.cached_property
    def kind(self) -> Any:
        """Its computation, without its inputs. Equal to no other if the parameters are not hashable."""
        params = tuple((k, id(v) if k == "jaxpr" else v) for k, v in sorted(self.params.items()))
        kind = self.primitive, params
        try:
            hash(kind)
        except TypeError:
            return object()
        return kind

    @functools.cached_property
    def values(self) -> list[Value]:
        return [x for x in self.inputs if isinstance(x, Value)]

    @functools.cached_property
    def arrays(self) -> list[Value]:
        """The inputs that are neither constants nor scalars."""
        return [x for x in self.values if not is_scalar(x)]

    def run(self, inputs: list[Any]) -> list[Any]:
        """Binds the primitive to JAX arrays or tracers."""
        with self.context.manager:
            out = self.primitive.bind(*inputs, **self.primitive.get_bind_params(self.params))
        return out if self.primitive.multiple_results else [out]


@dataclass
class Trace:
    """A function as equations. `constants` are arrays that it closes over."""

    inputs: list[Value]
    outputs: list[Atom] = field(default_factory=list)
    equations: list[Equation] = field(default_factory=list)
    constants: dict[Value, Any] = field(default_factory=dict)


def traced(closed: Any) -> Trace:
    """A closed jaxpr as a `Trace`."""
    trace = Trace([Value(v.aval) for v in closed.jaxpr.invars])
    known: dict[Any, list[Value]] = {}
    trace.outputs = _inline(closed, list(trace.inputs), trace, known)
    return pruned(trace)


def pruned(trace: Trace) -> Trace:
    """`trace` without the equations that no output depends on."""
    trace.equations = needed(trace.equations, trace.outputs)
    return trace


def needed(equations: Iterable[Equation], results: Iterable[Atom]) -> list[Equation]:
    """The equations that `results` depend on, and those with side effects."""
    wanted, kept = {*results}, []
    for e in reversed([*equations]):
        if e.effects or any(x in wanted for x in e.outputs):
            kept.append(e)
            wanted.update(e.values)
    return kept[::-1]


def _inline(closed: Any, inputs: list[Atom], trace: Trace, known: dict[Any, list[Value]]) -> list[Atom]:
    """Appends the equations of `closed` to the trace. Returns its outputs."""
    atoms: dict[Any, Atom] = dict(zip(closed.jaxpr.invars, inputs, strict=True))
    for variable, value in zip(closed.jaxpr.constvars, closed.consts, strict=True):
        atoms[variable] = closed_over = Value(variable.aval)
        trace.constants[closed_over] = value

    def atom(x: Any) -> Atom:
        return Constant.of(np.asarray(x.val, np.dtype(x.aval.dtype))) if hasattr(x, "val") else atoms[x]

    for equation in closed.jaxpr.eqns:
        arguments = [atom(x) for x in equation.invars]
        name = equation.primitive.name
        if name in _CALLS and equation.params.get("name") not in _KEPT and not equation.effects:
            inner = equation.params.get("jaxpr") or equation.params["call_jaxpr"]
            inner = inner if isinstance(inner, type(closed)) else type(closed)(inner, ())
            results = _inline(inner, arguments, trace, known)
        elif name == "convert_element_type" and isinstance(arguments[0], Constant):
            results = [Constant.of(arguments[0].value.astype(equation.params["new_dtype"]))]
        else:
            outputs = [Value(v.aval) for v in equation.outvars]
            made = Equation(equation.primitive, equation.params, arguments, outputs, equation.effects, equation.ctx)
            results = known.setdefault(_key(made), outputs)
            if results is outputs:
                trace.equations.append(made)
        atoms.update(zip(equation.outvars, results, strict=True))
    return [atom(x) for x in closed.jaxpr.outvars]


def _key(e: Equation) -> Any:
    """A key that is equal for two equations that compute the same; equal to no other if an equation must not be shared.

    The indices of elements are not shared: arrays of one shape would otherwise become one region with one loop.
    """
    if e.effects or e.params.get("name") == INDEX:
        return object()
    return (e.kind, *e.inputs, *(x.aval for x in e.outputs))


def renamed(equations: list[Equation], names: dict[Any, Atom]) -> list[Equation]:
    """The equations on other inputs.

    Args:
        names: the new value of each old one. The results are added to it.
    """
    new = []
    for e in equations:
        inputs = [names.get(x, x) for x in e.inputs]
        new.append(replace(e, inputs=inputs, outputs=[Value(x.aval) for x in e.outputs]))
        names.update(zip(e.outputs, new[-1].outputs, strict=True))
    return new


def evaluate(equations: list[Equation], known: dict[Value, Any]) -> None:
    """Runs `equations` one by one, and adds their results to `known`."""
    for equation in equations:
        inputs = [x.value if isinstance(x, Constant) else known[x] for x in equation.inputs]
        known.update(zip(equation.outputs, equation.run(inputs), strict=True))


def trace_of(function: Callable[..., Any], *args: Any) -> tuple[Trace, Any]:
    """The trace of `function(*args)`, and the pytree structure of its result."""
    closed, out = jax.make_jaxpr(function, return_shape=True)(*args)
    return traced(closed), jax.tree.structure(out)
