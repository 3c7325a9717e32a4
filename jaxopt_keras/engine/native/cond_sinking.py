"""Pass: moves the unpacking and packing of a buffer into the branches of the `cond` between them.

A guard and accumulation make the step a branch of a `cond`. Native loops in the branches can then write the buffer in
place; otherwise the `cond` would get and return its arrays one by one.
"""

from dataclasses import replace
from typing import Any

from jaxopt_keras.engine.native.fusion import is_same
from jaxopt_keras.engine.native.ir import PACK, UNPACK, Equation, Trace, Value, pruned, renamed, traced


def sink(trace: Trace, partners: dict[Any, Value]) -> None:
    """Rewrites the `cond`s of a trace.

    Args:
        partners: the input whose memory a result may take.
    """
    unpacks = {e.values[0]: e for e in trace.equations if e.name == UNPACK}
    for pack in [e for e in trace.equations if e.name == PACK]:
        buffer = partners.get(pack.outputs[0])
        if buffer in unpacks:
            _sink(trace, unpacks[buffer], pack)


def _sink(trace: Trace, unpack: Equation, pack: Equation) -> None:
    arrays, before, readers = {*unpack.outputs}, [unpack], []
    for e in trace.equations:
        if any(x in arrays for x in e.inputs):
            if is_same(e):
                arrays |= {*e.outputs}
                before.append(e)
            elif e is not pack:
                readers.append(e)
    if [e for e in trace.equations if unpack.values[0] in e.values] != [unpack]:
        return
    conds = [e for e in readers if e.name == "cond"]
    found = [(e, after) for e in conds if (after := _after(trace, e, pack, arrays)) is not None]
    if len(found) != 1:
        return
    ((cond, after),) = found
    new = {e: _with_buffer(e, unpack, arrays, before) for e in conds if e is not cond}  # a probe of a guard
    moved = {*after}
    elsewhere = {*trace.outputs, *(x for e in trace.equations if e not in moved for x in e.values)}
    kept = [x for x in cond.outputs if x in elsewhere]
    new[cond] = _with_buffer(cond, unpack, arrays, before, after, kept)
    trace.equations = [new.get(e, e) for e in trace.equations if e is not pack]
    pruned(trace)


def _after(trace: Trace, cond: Equation, pack: Equation, arrays: set[Value]) -> list[Equation] | None:
    """The equations between the results of `cond` and the packed buffer; None if others take part."""
    known = arrays | {*cond.outputs}
    after, wanted = [pack], {*pack.inputs} - known
    for e in reversed(trace.equations):
        if any(x in wanted for x in e.outputs):
            if not is_same(e):
                return None
            after.append(e)
            wanted = (wanted | {*e.inputs}) - {*e.outputs} - known
    read = {x for e in after for x in e.inputs}
    return after[::-1] if any(x in read for x in cond.outputs) else None


def _with_buffer(
    cond: Equation,
    unpack: Equation,
    arrays: set[Value],
    before: list[Equation],
    after: list[Equation] | None = None,
    kept: list[Value] | None = None,
) -> Equation:
    """A `cond` that gets the buffer and unpacks it, and with `after` also packs it and returns `kept` besides."""
    after, kept = after or [], cond.outputs if kept is None else kept
    branches = [_within(branch, cond, before, after, kept) for branch in cond.params["branches"]]
    inputs = [cond.inputs[0], *unpack.inputs, *(x for x in cond.inputs[1:] if x not in arrays)]
    outputs = [*(x for e in after[-1:] for x in e.outputs), *kept]
    return replace(cond, params=cond.params | {"branches": branches}, inputs=inputs, outputs=outputs)


def _within(branch: Any, cond: Equation, before: list[Equation], after: list[Equation], kept: list[Value]) -> Trace:
    """A branch with the equations `before` it, which unpack the buffer, and those `after` it, which pack it."""
    branch = branch if isinstance(branch, Trace) else traced(branch)
    (buffer,) = before[0].values
    inputs = [Value(buffer.aval)]
    names: dict[Any, Any] = {buffer: inputs[0]}
    equations = renamed(before, names)
    for x, inner in zip(cond.inputs[1:], branch.inputs, strict=True):
        if x in names:
            names[inner] = names[x]
        else:
            inputs.append(inner)
    equations += renamed(branch.equations, names)
    names |= {x: names.get(inner, inner) for x, inner in zip(cond.outputs, branch.outputs, strict=True)}
    equations += renamed(after, names)
    outputs = [names[x] for x in (*(x for e in after[-1:] for x in e.outputs), *kept)]
    return pruned(Trace(inputs, outputs, equations, branch.constants))
