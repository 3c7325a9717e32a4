"""A pure step with its loops over elements made native."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax import lax

from jaxopt_keras.engine.native.build import Unavailable
from jaxopt_keras.engine.native.call import Call, run
from jaxopt_keras.engine.native.emit import Loop
from jaxopt_keras.engine.native.pools import Pools, Rejoined
from jaxopt_keras.engine.native.regions import Phase, Region, Split, plain
from jaxopt_keras.engine.native.sinking import sink
from jaxopt_keras.engine.native.trace import Constant, Equation, Trace, Value, evaluated, is_scalar, trace_of, traced

# Leaves of one call. XLA's time to pair the memory of inputs and outputs grows faster than their number.
AT_ONCE = 128


def native(function: Callable[..., Any], strict: bool = False) -> Callable[..., Any]:
    """`function`, a pure function of pytrees of arrays, with its loops over elements native where they can be.

    Its k-th result has the memory of its k-th argument, counted in arrays, where both are of the same type and the
    argument is donated, as `jit` pairs donated arguments.

    Args:
        strict: raise where a loop cannot be native, instead of leaving it to XLA.
    """

    @functools.wraps(function)
    def lowered(*args: Any, **static: Any) -> Any:
        trace, structure = trace_of(functools.partial(function, **static), *args)
        partners = dict(zip(trace.outputs, trace.inputs, strict=False))
        return jax.tree.unflatten(structure, evaluate(trace, jax.tree.leaves(args), partners, strict))

    return lowered


def reasons(function: Callable[..., Any], *args: Any) -> list[str]:
    """Why XLA runs what `function` does with each of the arrays in `args`; "" for those that loops run."""
    trace, _ = trace_of(function, *args)
    found = {x: region.reason for region in Split(trace).regions for x in region.values}
    return ["one element" if is_scalar(x) else found.get(x, "") for x in trace.inputs]


def evaluate(trace: Trace, args: list[Any], partners: dict[Any, Value], strict: bool) -> list[Any]:
    """The results of a trace. `partners`: the input whose memory a result may have."""
    sink(trace, partners)
    split = Split(trace)
    refused = [region.reason for region in split.regions if region.reason and region.count]
    if strict and refused:
        raise Unavailable(f'`engine="native"` has no loop for this: {refused[0]}. Use `engine="auto"`.')
    known: dict[Value, Any] = dict(zip(trace.inputs, args, strict=True)) | trace.constants
    pools = Pools(split, partners)
    cut_out = [x for each in pools.rejoined for x in each.rest.values()]
    steps: list[tuple[Any, Any]] = [((*split.starts[id(e)], 0), e) for e in plain(split, cut_out)]
    steps += [((*split.starts[id(each.equation)], 0), each) for each in pools.rejoined]
    moved = {each.pool for each in pools.rejoined}
    steps += [((depth, level, 1), call) for depth, level, call in calls(split.regions, partners, moved, strict)]
    for _, step in sorted(steps, key=lambda x: x[0]):
        if isinstance(step, Call):
            results = run(step, *(known[x] for x in step.operands))
            known.update(zip(step.results, results, strict=True))  # a pool has new contents under its old name
        elif isinstance(step, Rejoined):
            known[step.equation.outputs[0]] = step.run(known)
        elif step.name == "cond":
            known.update(zip(step.outputs, conditional(step, known, partners, strict), strict=True))
        else:
            evaluated([step], known)
    return [x.value if isinstance(x, Constant) else known[x] for x in trace.outputs]


def calls(
    regions: Iterable[Region], partners: dict[Any, Value], moved: set[Value], strict: bool
) -> Iterable[tuple[int, int, Call]]:
    """The loops of all regions, equal ones together, with when they run. `moved`: the pools that loops write into."""
    groups: dict[Any, list[Phase]] = {}
    for region in regions:
        for level, phase in region.phases.items() if not region.reason else ():
            key = region.depth, level, phase.loop.source, *phase.loop.pools
            groups.setdefault(key, []).append(phase)
    for (depth, level, *_), members in groups.items():
        for i in range(0, len(members), AT_ONCE):
            loops, equations = zip(*members[i : i + AT_ONCE], strict=True)
            aliases = [in_place(loop, partners) for loop in loops]
            yield depth, level, Call([*loops], [*equations], aliases, moved & {*loops[0].pools}, strict)


def in_place(loop: Loop, partners: dict[Any, Value]) -> dict[int, int]:
    """Which output takes an input's memory: its partner's, if the loop reads it and has no rule of its own.

    Counted among those that are buffers of their own.
    """
    if loop.aliases is not None:
        return loop.aliases
    pairs: dict[int, int] = {}
    inputs = loop.apart(loop.inputs)
    for k, x in enumerate(loop.apart(loop.outputs)):
        partner = partners.get(x)
        if partner in inputs and (partner.shape, partner.dtype) == (x.shape, x.dtype):
            pairs.setdefault(inputs.index(partner), k)
    return pairs


def conditional(equation: Equation, known: dict[Value, Any], partners: dict[Any, Value], strict: bool) -> list[Any]:
    """A `cond` whose branches are lowered too."""
    index, *operands = [x.value if isinstance(x, Constant) else known[x] for x in equation.inputs]

    def branch(closed: Any) -> Callable[..., Any]:
        def lowered(*args: Any) -> list[Any]:
            trace = closed if isinstance(closed, Trace) else traced(closed)
            outer = dict(zip(equation.inputs[1:], trace.inputs, strict=True))
            mine = {
                x: outer[partners[y]]
                for x, y in zip(trace.outputs, equation.outputs, strict=True)
                if partners.get(y) in outer
            }
            return evaluate(trace, list(args), mine, strict)

        return lowered

    return lax.switch(index, [branch(closed) for closed in equation.params["branches"]], *operands)
