"""A `cond` between the taking apart of a pool and its putting together takes in both, so that its loops find the pool.

A guard and accumulation make the step a branch of a `cond`, which would otherwise get and return the pieces.
"""

from dataclasses import replace
from typing import Any

from jaxopt_keras.engine.native.regions import is_same
from jaxopt_keras.engine.native.trace import APART, TOGETHER, Equation, Trace, Value, pruned, renamed, traced


def sink(trace: Trace, partners: dict[Any, Value]) -> None:
    """Rewrites the `cond`s of a trace. `partners`: the input whose memory a result may have."""
    apart = {e.values[0]: e for e in trace.equations if e.name == APART}
    for together in [e for e in trace.equations if e.name == TOGETHER]:
        pool = partners.get(together.outputs[0])
        if pool is not None and pool in apart:
            _sink(trace, apart[pool], together)


def _sink(trace: Trace, apart: Equation, together: Equation) -> None:
    pieces, before, readers = {*apart.outputs}, [apart], []
    for e in trace.equations:
        if any(x in pieces for x in e.inputs):
            if is_same(e):
                pieces |= {*e.outputs}
                before.append(e)
            elif e is not together:
                readers.append(e)
    read_whole = [e for e in trace.equations if apart.values[0] in e.values]
    if read_whole != [apart] or len(readers) != 1 or readers[0].name != "cond":
        return
    (cond,) = readers
    known = pieces | {*cond.outputs}
    after, wanted = [together], {*together.inputs} - known
    for e in reversed(trace.equations):
        if e.outputs[0] in wanted:
            if not is_same(e):
                return
            after.append(e)
            wanted = (wanted | {*e.inputs}) - {*e.outputs} - known
    ids = {id(e) for e in after}
    elsewhere = {*trace.outputs, *(x for e in trace.equations if id(e) not in ids for x in e.values)}
    kept = [x for x in cond.outputs if x in elsewhere]
    branches = [_within(branch, cond, before, after[::-1], kept) for branch in cond.params["branches"]]
    inputs = [cond.inputs[0], *apart.inputs, *(x for x in cond.inputs[1:] if x not in pieces)]
    outputs = [*together.outputs, *kept]
    new = replace(cond, params=cond.params | {"branches": branches}, inputs=inputs, outputs=outputs)
    trace.equations = [new if e is cond else e for e in trace.equations if e is not together]
    pruned(trace)


def _within(branch: Any, cond: Equation, before: list[Equation], after: list[Equation], kept: list[Value]) -> Trace:
    """A branch with the equations that make its operands of a pool before it, and those that make the pool after it."""
    branch = branch if isinstance(branch, Trace) else traced(branch)
    (pool,) = before[0].values
    inputs = [Value(pool.aval)]
    names: dict[Any, Any] = {pool: inputs[0]}
    equations = renamed(before, names)
    for x, inner in zip(cond.inputs[1:], branch.inputs, strict=True):
        if x in names:
            names[inner] = names[x]
        else:
            inputs.append(inner)
    equations += renamed(branch.equations, names)
    names |= {x: names.get(inner, inner) for x, inner in zip(cond.outputs, branch.outputs, strict=True)}
    equations += renamed(after, names)
    outputs = [names[x] for x in (*after[-1].outputs, *kept)]
    return pruned(Trace(inputs, outputs, equations, branch.constants))
