"""A `cond` of a step, as a JAX primitive: where kernels can look at its predicate, it becomes no branch.

A guard and accumulation decide whether arrays are updated, or stay as they are. On a GPU a branch may make the host
wait for the predicate. A kernel that gets it as a number returns at once, and XLA selects the scalars.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import ad, batching, mlir

from jaxopt_keras.engine.native.backends import BACKENDS, against
from jaxopt_keras.engine.native.fusion import is_same
from jaxopt_keras.engine.native.ir import PACK, UNPACK, Constant, Equation, Trace, Value, evaluate, pruned, traced
from jaxopt_keras.engine.native.loop import Leaf
from jaxopt_keras.engine.native.phase import Phase
from jaxopt_keras.packing.trees import Primitive

SMALL = 2**14  # elements that XLA may compute in vain
# What needs the axes of a transformation, or the devices: the lowering of a primitive knows neither.
BOUND = {
    "custom_partitioning",
    "psum", "psum2", "psum_invariant", "pmax", "pmin", "all_gather", "all_gather_invariant", "all_to_all", "ppermute",
    "reduce_scatter", "axis_index", "pvary", "pcast",
}  # fmt: skip


class Unguarded(Exception):
    """Why the results of a branch cannot be left as they are by kernels that look at a predicate."""


@dataclass
class Guard:
    """The flag at which the loops of a branch look.

    Attributes:
        flag: whether they run.
        refuses: why the backend has no form for a loop; "" if it has one.
        kept: results and the values that they have if the loops do not run. Such a value can be a key too: `origin`
            follows the chain.
    """

    flag: Any
    refuses: Callable[[Leaf], str]
    name: Value = field(init=False)
    kept: dict[Any, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name = Value(jax.typeof(self.flag))

    def origin(self, x: Any) -> Any:
        """The value of `x` if the loops do not run."""
        while x in self.kept:
            x = self.kept[x]
        return x

    def watch(self, phase: Phase) -> None:
        """Let the loops of a phase look at the flag.

        Raises:
            Unguarded: if some are not kernels.
        """
        if reason := next(filter(None, map(self.refuses, phase.leaves)), ""):
            raise Unguarded(f"XLA updates an array: {reason}")
        phase.guard_by(self.name)
        self.kept |= phase.replaced

    def check(self, e: Equation, is_packed: Callable[[Value], bool]) -> None:
        """Check an equation that XLA computes in any case.

        Args:
            is_packed: whether only loops read a value, inside the packed buffer that holds it.

        Raises:
            Unguarded: if it costs more than a few numbers.
        """
        if e.name == UNPACK:
            costs = any(size(x) > SMALL and not is_packed(x) for x in e.outputs)
        else:
            costs = size(*e.inputs, *e.outputs) > SMALL and not (is_same(e) and size(*e.inputs) == size(*e.outputs))
        if costs or e.effects:
            raise Unguarded(f"XLA runs {e.name}")


def size(*values: Any) -> int:
    return sum(x.size for x in values)


def branches(cond: Equation) -> list[Trace]:
    found = [x if isinstance(x, Trace) else traced(x) for x in cond.params["branches"]]
    return [Trace([*x.inputs], [*x.outputs], [*x.equations], x.constants) for x in found]


def shortened(trace: Trace) -> Trace:
    """A branch without packing what it has unpacked: that is the buffer again."""
    makers = {x: e for e in trace.equations for x in e.outputs}

    def origin(x: Any) -> Any:
        while x in makers and is_same(makers[x]) and makers[x].values:
            (x,) = makers[x].values
        return x

    unpacks: dict[Any, Any] = {tuple(e.outputs): e.inputs[0] for e in trace.equations if e.name == UNPACK}
    packs: dict[Any, Any] = {
        e.outputs[0]: unpacks.get(tuple(map(origin, e.inputs))) for e in trace.equations if e.name == PACK
    }
    trace.outputs = [packs.get(x) or x for x in trace.outputs]
    return pruned(trace)


def ways(cond: Equation) -> tuple[Trace, Trace, bool]:
    """The branch that updates, the idle one, and whether the first is chosen by 1.

    Raises:
        Unguarded: if no branch is idle.
    """
    both = [*map(shortened, branches(cond))]
    if len(both) == 2:
        # Where both branches cost little, as for small arrays, the one with fewer equations is idle.
        for idle, real in sorted((both, both[::-1]), key=lambda x: len(x[0].equations)):
            costs = size(*(x for e in idle.equations for x in (*e.inputs, *e.outputs))) > SMALL
            known = {*idle.inputs}
            if not costs and all(x in known or size(x) <= SMALL for x in idle.outputs):
                return real, idle, real is both[1]
    raise Unguarded("no branch keeps all arrays")


def selected(real: Trace, idle: Trace, results: list[Any], operands: list[Any], guard: Guard) -> list[Any]:
    """The results of a `cond`, of which loops have left arrays as they are and XLA selects single numbers.

    Raises:
        Unguarded: for another array.
    """
    known: dict[Any, Any] = dict(zip(idle.inputs, operands, strict=True)) | idle.constants
    evaluate(idle.equations, known)
    partner: dict[Any, Value] = dict(zip(idle.inputs, real.inputs, strict=True))
    out = []
    for x, y, new in zip(real.outputs, idle.outputs, results, strict=True):
        is_input = isinstance(y, Value) and y in partner
        if not (is_input and guard.origin(x) is partner[y]):
            if size(x) > SMALL:
                raise Unguarded("an array takes the memory of no other")
            new = jnp.where(guard.flag, new, y.value if isinstance(y, Constant) else known[y])
        out.append(new)
    return out


def needs_branches(cond: Equation) -> str:
    """The first equation with effects, or that needs the axes of a transformation or the devices; "" without one."""

    def bound(e: Equation) -> str:
        if e.effects:
            return e.name
        if e.name == "cond":
            return needs_branches(e)
        return next((x for x in (e.name, *inner_names(e.params)) if x in BOUND), "")

    found = filter(None, (bound(e) for x in branches(cond) for e in x.equations))
    return next(found, "effects" if cond.effects else "")


def inner_names(parameters: Any) -> Iterator[str]:
    """Yield the names of the primitives in the programs of an equation, at any depth."""
    for x in jax.tree.leaves([*parameters.values()], is_leaf=lambda x: hasattr(x, "eqns")):
        for e in getattr(x, "eqns", ()):
            yield e.primitive.name
            yield from inner_names(e.params)


choice_p = Primitive("jaxopt_keras_choice")
choice_p.multiple_results = True


def choose(cond: Equation, switched: Callable[..., Any], guarded: Callable[..., Any], *operands: Any) -> list[Any]:
    """The results of a `cond`: by branches, or where a backend can, by loops that look at its predicate.

    Args:
        switched: the results by branches.
        guarded: the results by loops; it also takes `Guard.refuses`.
    """
    if needs_branches(cond) or jax.sharding.get_abstract_mesh().manual_axes:
        return switched(*operands)
    return choice_p.bind(*operands, avals=tuple(x.aval for x in cond.outputs), switched=switched, guarded=guarded)


@choice_p.def_impl
def _(*operands: Any, avals: Any, switched: Any, guarded: Any) -> list[Any]:
    return switched(*operands)


@choice_p.def_abstract_eval
def _(*operands: Any, avals: Any, switched: Any, guarded: Any) -> list[Any]:
    return [*avals]


def _jvp(primals: Any, tangents: Any, avals: Any, switched: Any, guarded: Any) -> Any:
    return jax.jvp(switched, tuple(primals), tuple(ad.instantiate_zeros(t) for t in tangents))


def _batched(operands: Any, axes: Any, avals: Any, switched: Any, guarded: Any) -> Any:
    out = jax.vmap(switched, axes)(*operands)
    return out, [0] * len(out)


def _lowered(context: Any, *operands: Any, avals: Any, switched: Any, guarded: Any) -> Any:
    module = context.module_context
    backend = BACKENDS.get(module.platforms[0])
    if backend is not None and backend.has_guards and not against(module):
        try:
            run = functools.partial(guarded, backend.refuses)
            return mlir.lower_fun(run, multiple_results=True)(context, *operands)
        except Unguarded:
            pass
    return mlir.lower_fun(switched, multiple_results=True)(context, *operands)


ad.primitive_jvps[choice_p] = _jvp
batching.primitive_batchers[choice_p] = _batched
mlir.register_lowering(choice_p, _lowered)
