"""A pure function as a flat list of equations: nested calls inlined, equal ones once, dead ones gone."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

if TYPE_CHECKING:  # it brings Pallas: 0.1 s
    from jax.extend.core import ClosedJaxpr

# Jitted helpers that have a meaning of their own here: not inlined. In a loop (storage/noise.py, storage/blockwise.py):
PLACES = "flat_index"
INTRINSICS = (PLACES, "pairs", "unpaired")
# Around loops (packed.py): a buffer in pieces, a primitive; and the other way round, a jitted helper.
APART, TOGETHER = "taken_apart", "put_together"
_CALLS = ("jit", "pjit", "closed_call", "core_call")


@dataclass(eq=False)
class Value:
    """The result of an equation, or an input."""

    aval: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return self.aval.shape

    @property
    def dtype(self) -> str:
        return str(self.aval.dtype)


class Constant(NamedTuple):
    """A number that stands in the program."""

    value: Any  # a NumPy scalar

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    @property
    def dtype(self) -> str:
        return str(self.value.dtype)


Atom = Value | Constant


def is_scalar(x: Atom) -> bool:
    """Whether it has one element, whatever its axes: XLA computes those."""
    return math.prod(x.shape) == 1


@dataclass(eq=False)
class Equation:
    """outputs = primitive(*inputs, **params)"""

    primitive: Any
    params: dict[str, Any]
    inputs: list[Atom]
    outputs: list[Value]
    effects: Any
    context: Any

    @property
    def name(self) -> str:
        """Of the primitive, or of the intrinsic that it calls."""
        return self.params["name"] if self.primitive.name in _CALLS else self.primitive.name

    @property
    def values(self) -> list[Value]:
        return [x for x in self.inputs if isinstance(x, Value)]

    @property
    def arrays(self) -> list[Value]:
        """The inputs that are not scalars."""
        return [x for x in self.values if not is_scalar(x)]

    def run(self, inputs: list[Any]) -> list[Any]:
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


def traced(closed: "ClosedJaxpr") -> Trace:
    """A closed jaxpr as a `Trace`."""
    trace = Trace([Value(v.aval) for v in closed.jaxpr.invars])
    known: dict[Any, list[Value]] = {}
    trace.outputs = _inline(closed, list(trace.inputs), trace, known)
    return pruned(trace)


def pruned(trace: Trace) -> Trace:
    """`trace` without the equations that nobody needs."""
    needed = {x for x in trace.outputs if isinstance(x, Value)}
    kept = []
    for equation in reversed(trace.equations):
        if equation.effects or any(x in needed for x in equation.outputs):
            kept.append(equation)
            needed.update(equation.values)
    trace.equations = kept[::-1]
    return trace


def _inline(closed: "ClosedJaxpr", inputs: list[Atom], trace: Trace, known: dict[Any, list[Value]]) -> list[Atom]:
    """Appends the equations of `closed` to the trace; its outputs."""
    atoms: dict[Any, Atom] = dict(zip(closed.jaxpr.invars, inputs, strict=True))
    for variable, value in zip(closed.jaxpr.constvars, closed.consts, strict=True):
        atoms[variable] = closed_over = Value(variable.aval)
        trace.constants[closed_over] = value

    def atom(x: Any) -> Atom:
        return Constant(np.asarray(x.val, np.dtype(x.aval.dtype))[()]) if hasattr(x, "val") else atoms[x]

    for equation in closed.jaxpr.eqns:
        arguments = [atom(x) for x in equation.invars]
        name = equation.primitive.name
        if name in _CALLS and equation.params.get("name") not in (*INTRINSICS, TOGETHER) and not equation.effects:
            inner = equation.params.get("jaxpr") or equation.params["call_jaxpr"]
            inner = inner if isinstance(inner, type(closed)) else type(closed)(inner, ())
            results = _inline(inner, arguments, trace, known)
        else:
            if name == "convert_element_type" and isinstance(arguments[0], Constant):
                arguments[0] = Constant(arguments[0].value.astype(equation.params["new_dtype"]))
                atoms[equation.outvars[0]] = arguments[0]
                continue
            key = _key(equation, arguments)
            results = known.get(key) if key is not None else None
            if results is None:
                results = [Value(v.aval) for v in equation.outvars]
                made = (equation.primitive, equation.params, arguments, results, equation.effects, equation.ctx)
                trace.equations.append(Equation(*made))
                if key is not None:
                    known[key] = results
        atoms.update(zip(equation.outvars, results, strict=True))
    return [atom(x) for x in closed.jaxpr.outvars]


def _key(equation: Any, arguments: list[Atom]) -> Any:
    """Equal for two equations that compute the same; None where that cannot be told, or must not be shared.

    The places of elements are made anew for each array: arrays of one shape would otherwise be one region, one loop.
    """
    if equation.effects or equation.params.get("name") == PLACES:
        return None
    inputs = tuple((x.dtype, x.value.tobytes()) if isinstance(x, Constant) else id(x) for x in arguments)
    params = tuple(sorted((k, v) for k, v in equation.params.items() if k != "jaxpr"))
    inner = id(equation.params.get("jaxpr"))
    avals = tuple(str(v.aval) for v in equation.outvars)
    key = (equation.primitive, params if params else (), inner, inputs, avals)
    try:
        hash(key)
    except TypeError:
        return None
    return key


def renamed(equations: list[Equation], names: dict[Any, Atom]) -> list[Equation]:
    """The equations on other inputs. `names`: what stands for what; the results are added, as new values."""
    new = []
    for e in equations:
        inputs = [names.get(x, x) for x in e.inputs]
        new.append(replace(e, inputs=inputs, outputs=[Value(x.aval) for x in e.outputs]))
        names.update(zip(e.outputs, new[-1].outputs, strict=True))
    return new


def evaluated(equations: list[Equation], known: dict[Value, Any]) -> dict[Value, Any]:
    """`known` with the results of `equations`, run one by one."""
    for equation in equations:
        inputs = [x.value if isinstance(x, Constant) else known[x] for x in equation.inputs]
        known.update(zip(equation.outputs, equation.run(inputs), strict=True))
    return known


def trace_of(function: Callable[..., Any], *args: Any) -> tuple[Trace, Any]:
    """The trace of `function(*args)`, and the structure of what it returns."""
    closed, out = jax.make_jaxpr(function, return_shape=True)(*args)
    return traced(closed), jax.tree.structure(out)
