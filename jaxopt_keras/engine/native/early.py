"""Outputs that are known before a norm: the loop of the norm writes them, and the next one reads them.

If that moves fewer bytes. Otherwise all outputs are written by the last loop, which computes them anew.
"""

from collections.abc import Callable, Mapping
from typing import Any

from jaxopt_keras.engine.native.ir import PACK, UNPACK, Trace, Value
from jaxopt_keras.engine.native.loop import Leaf


def best(
    leaves: Callable[[dict[Value, int]], dict[int, Leaf]], known: dict[Value, int], replaced: Mapping[Any, Value]
) -> dict[int, Leaf]:
    """The loops that move fewer bytes: with outputs written as soon as they are known, or all in the last one.

    No loop may read an array after another one has written into its memory.

    Args:
        leaves: makes the loops, by level, from the outputs that are written early and their levels.
        known: the level in which each output is known.
        replaced: the array whose memory an output takes.
    """
    at_the_end = leaves({})
    early = {y: level for y, level in known.items() if level < max(at_the_end)}
    while early:
        other = leaves(early)
        read = [(level, {*leaf.inputs}) for level, leaf in other.items()]
        late = [y for y in early if any(at > early[y] and replaced.get(y) in some for at, some in read)]
        if not late:
            return min(at_the_end, other, key=moved)
        early = {y: level for y, level in early.items() if y not in late}
    return at_the_end


def moved(leaves: dict[int, Leaf]) -> int:
    """The bytes that loops read and write."""
    arrays = (x for leaf in leaves.values() for x in (*leaf.inputs, *leaf.outputs))
    return sum(x.size * x.aval.dtype.itemsize for x in arrays)


def memory_of(trace: Trace, partners: Mapping[Any, Value]) -> dict[Any, Value]:
    """The arrays whose memory results may take, also inside packed buffers."""
    unpacks: dict[Any, list[Value]] = {e.values[0]: e.outputs for e in trace.equations if e.name == UNPACK}
    pairs = dict(partners)
    for e in trace.equations:
        if e.name == PACK:
            pairs |= zip(e.inputs, unpacks.get(partners.get(e.outputs[0]), ()), strict=False)
    return pairs
