"""Replaces the element-wise arithmetic of a pure function by native loops: all passes in their order."""

import contextlib
import functools
import gc
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
from jax import lax

from jaxopt_keras.engine.native.backends import BACKENDS, platform, refuses
from jaxopt_keras.engine.native.build import Unavailable
from jaxopt_keras.engine.native.choice import Guard, Unguarded, branches, choose, needs_branches, selected, ways
from jaxopt_keras.engine.native.cond_sinking import sink
from jaxopt_keras.engine.native.fusion import INDICES, Fusion, Moment, Region, remaining
from jaxopt_keras.engine.native.ir import Constant, Equation, Trace, Value, evaluate, is_scalar, trace_of
from jaxopt_keras.engine.native.joints import Chain, joined, shortened
from jaxopt_keras.engine.native.loop import Leaf
from jaxopt_keras.engine.native.packed_operands import PackedOperands, Repacked
from jaxopt_keras.engine.native.phase import Phase, run
from jaxopt_keras.engine.native.prologue import Column, Columns, Prologue, stacked


def native(function: Callable[..., Any], strict: bool = False) -> Callable[..., Any]:
    """`function`, a pure function of pytrees of arrays, with native loops for its element-wise arithmetic.

    Its k-th result takes the memory of its k-th argument, counted in arrays, if both have the same type and the
    argument is donated, as `jit` pairs donated arguments.

    Args:
        strict: raise where a loop cannot be native, instead of leaving it to XLA.
    """

    @functools.wraps(function)
    @without_collections()
    def lowered(*args: Any, **static: Any) -> Any:
        trace, structure = trace_of(functools.partial(function, **static), *args)
        partners = dict(zip(trace.outputs, trace.inputs, strict=False))
        return jax.tree.unflatten(structure, results_of(trace, jax.tree.leaves(args), partners, strict))

    return lowered


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Let Python's garbage collector wait: it would look at all objects of the process again and again.

    A trace makes many objects, and keeps them.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def reasons(function: Callable[..., Any], *args: Any) -> tuple[list[str], list[str]]:
    """Why XLA runs the arithmetic of `function` on each of the arrays in `args`; "" for those that loops run.

    Also why each `cond` is a branch; "" for one that is a predicate at which kernels look.
    """
    trace, _ = trace_of(function, *args)
    found = {x: reason_of(region) for region in Fusion(trace).regions for x in region.values}
    engines = ["one element" if is_scalar(x) else found.get(x, "") for x in trace.inputs]
    sink(trace, dict(zip(trace.outputs, trace.inputs, strict=False)))
    return engines, [why_branches(e) for e in trace.equations if e.name == "cond"]


def why_branches(cond: Equation) -> str:
    """Why a `cond` is a branch on the default platform; "" if it is a predicate."""
    backend = BACKENDS.get(platform())
    if backend is None or not backend.has_guards:
        return f"on {platform()}"
    if reason := needs_branches(cond):
        return reason
    index, *operands = (x.value if isinstance(x, Constant) else x.aval for x in cond.inputs)
    try:
        jax.eval_shape(lambda index, *some: guarded(cond, False, backend.refuses, index, [*some])[0], index, *operands)
    except Unguarded as error:
        return str(error)
    return ""


def reason_of(region: Region) -> str:
    """Why XLA runs a region on the default platform; "" if loops do."""
    return region.reason or next(filter(None, map(refuses, region.leaves.values())), "")


def results_of(
    trace: Trace, args: list[Any], partners: dict[Any, Value], strict: bool, guard: Guard | None = None
) -> list[Any]:
    """The results of a trace.

    Args:
        partners: the input whose memory a result may take.
        guard: whether its loops run. XLA computes in any case.

    Raises:
        Unguarded: with a `guard`, if XLA would compute arrays.
    """
    sink(trace, partners)
    fusion = Fusion(trace, partners)
    refused = [r.reason for r in fusion.regions if r.reason not in ("", INDICES) and r.count]
    if strict and refused:
        raise Unavailable(f'`engine="native"` has no loop for this: {refused[0]}. Use `engine="auto"`.')
    known: dict[Value, Any] = dict(zip(trace.inputs, args, strict=True)) | trace.constants
    packed = PackedOperands(fusion, partners)
    repacked = packed.repacked
    rest = [x for each in repacked for x in each.rest.values()]
    written = {each.buffer for each in repacked}
    loops = [*phases(fusion.regions, partners, written, strict)]
    made = [phase for _, phase in loops]
    chains = joined(trace.equations, fusion.users, made)
    columns = Columns(trace, fusion.makers, (x for e in chains for x in e.outputs))
    for phase in made:
        phase.prepare(columns)
    if loops:
        moment, phase = max(loops, key=lambda x: x[0])
        phase.finish(columns, new_scalars(fusion, columns, partners, moment))
    rest += collected([x for phase in made for x in phase.ends], made)
    by_xla = shortened(remaining(fusion, rest), chains)
    if guard is not None:
        known[guard.name] = guard.flag
        for phase in made:
            guard.watch(phase)
        for e in by_xla:
            if isinstance(e, Equation) and e.name != "cond":
                guard.check(e, packed.places.__contains__)
        guard.kept |= {each.equation.outputs[0]: each.buffer for each in repacked}
    steps: list[tuple[Any, Any]] = [((*fusion.starts[getattr(x, "last", x)], 0), x) for x in by_xla]
    steps += [((*fusion.starts[each.equation], 0), each) for each in repacked]
    steps += loops
    for _, step in sorted(steps, key=lambda x: x[0]):
        if isinstance(step, Phase):
            known |= stacked(step.ends, known)
            results = run(step, *(known[x] for x in step.operands))
            known.update(zip(step.results, results, strict=True))  # a packed buffer keeps its name
        elif isinstance(step, Repacked):
            known[step.equation.outputs[0]] = step.run(known, None if guard is None else guard.flag)
        elif isinstance(step, Chain):
            known[step.last.outputs[0]] = step.run(known)
        elif step.name == "cond" and guard is not None:
            index, *operands = read(step.inputs, known)
            results, kept = guarded(step, strict, guard.refuses, index, operands, guard.flag)
            known.update(zip(step.outputs, results, strict=True))
            guard.kept |= kept
        elif step.name == "cond":
            known.update(zip(step.outputs, conditional(step, known, partners, strict), strict=True))
        else:
            evaluate([step], known)
    return read(trace.outputs, known)


def phases(regions: list[Region], partners: dict[Any, Value], written: set[Value], strict: bool) -> Iterable[Any]:
    """The loops that can run at the same time, after the depth and the level at which they run.

    Args:
        written: the packed buffers that loops write into.
    """
    groups: dict[Any, list[Leaf]] = {}
    for region in regions:
        for level, leaf in region.leaves.items() if not region.reason else ():
            groups.setdefault((region.depth, level), []).append(leaf)
    for (depth, level), leaves in groups.items():
        yield (depth, level, 1), Phase(leaves, [aliases_of(leaf, partners) for leaf in leaves], written, strict)


def new_scalars(
    fusion: Fusion, columns: Columns, partners: dict[Any, Value], moment: tuple[int, ...]
) -> dict[Value, Value]:
    """The results that the last phase, at `moment`, can compute in the memory of single numbers that it reads."""

    def is_known(x: Column) -> bool:
        return fusion.moments.get(x.name, Moment(0, 0)) <= moment[:2]

    if any(e.name == "cond" and fusion.starts[e] >= moment[:2] for e in fusion.trace.equations):
        return {}  # which may read those numbers
    found = {}
    for x, partner in partners.items():
        if isinstance(x, Value) and (column := columns.of((x,))).equation is not None:
            ends = Prologue([column]).ends
            fits = (x.shape, x.dtype) == (partner.shape, partner.dtype)
            if fits and all(map(is_known, ends)) and any(y.name is partner for y in ends):
                found[x] = partner
    return found


def collected(ends: list[Column], phases: list[Phase]) -> list[Value]:
    """The scalars of ends. Lets phases return those that are totals as arrays."""
    phase_of: dict[Any, Phase] = {x: phase for phase in phases for x in phase.totals}
    for x in ends:
        (phase, *others) = {phase_of.get(y) for y in x.scalars}
        if phase is not None and not others and not x.is_shared:
            phase.collect(x.scalars)
    return [y for x in ends for y in x.scalars if isinstance(y, Value)]


def aliases_of(leaf: Leaf, partners: dict[Any, Value]) -> dict[int, int]:
    """Which output takes the memory of which input, counted among the arrays that are not in packed buffers.

    An output over rows takes that of the input that it updates, another one that of its partner, if the loop reads it.
    """
    if leaf.loop.rows:
        return {y.updates: k for k, y in enumerate(leaf.loop.outputs) if y.updates is not None}
    pairs: dict[int, int] = {}
    inputs = leaf.unpacked(leaf.inputs)
    for k, x in enumerate(leaf.unpacked(leaf.outputs)):
        partner = partners.get(x)
        if partner in inputs and (partner.shape, partner.dtype) == (x.shape, x.dtype):
            pairs.setdefault(inputs.index(partner), k)
    return pairs


def conditional(equation: Equation, known: dict[Value, Any], partners: dict[Any, Value], strict: bool) -> list[Any]:
    """A `cond` with the loops of its branches native too."""

    def branch(trace: Trace) -> Callable[..., Any]:
        def lowered(*args: Any) -> list[Any]:
            outer = dict(zip(equation.inputs[1:], trace.inputs, strict=True))
            pairs = zip(trace.outputs, equation.outputs, strict=True)
            mine = {x: outer[partners[y]] for x, y in pairs if partners.get(y) in outer}
            return results_of(trace, list(args), mine, strict)

        return lowered

    def switched(index: Any, *operands: Any) -> list[Any]:
        with equation.context.manager:  # its mesh, of which some axes may be automatic there alone
            return lax.switch(index, [*map(branch, branches(equation))], *operands)

    def by_loops(refuses: Callable[[Leaf], str], index: Any, *operands: Any) -> list[Any]:
        return guarded(equation, strict, refuses, index, list(operands))[0]

    return choose(equation, switched, by_loops, *read(equation.inputs, known))


def guarded(
    cond: Equation, strict: bool, refuses: Callable[[Leaf], str], index: Any, operands: list[Any], outer: Any = True
) -> tuple[list[Any], dict[Any, Any]]:
    """The results of a `cond` by loops that look at its predicate, and which operands they are without it.

    Args:
        outer: the predicate of the `cond` around it.

    Raises:
        Unguarded: if that is not possible.
    """
    real, idle, is_second = ways(cond)
    flag = (index > 0 if is_second else index <= 0) & outer
    guard, inner = Guard(flag, refuses), dict(zip(idle.inputs, real.inputs, strict=True))
    pairs = zip(real.outputs, idle.outputs, strict=True)
    partners = {x: inner[y] for x, y in pairs if isinstance(x, Value) and y in inner}
    found = results_of(real, operands, partners, strict, guard)
    outside = dict(zip(idle.inputs, cond.inputs[1:], strict=True))
    kept = {x: outside[y] for x, y in zip(cond.outputs, idle.outputs, strict=True) if y in outside}
    return selected(real, idle, found, operands, guard), kept


def read(atoms: Iterable[Any], known: dict[Value, Any]) -> list[Any]:
    return [x.value if isinstance(x, Constant) else known[x] for x in atoms]
