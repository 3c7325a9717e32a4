"""Pass: loops read and write arrays inside the packed buffers that hold them.

A step unpacks a buffer, and packs its results into a new one. The loops include both: they get the buffer, with the
place of each array, and write into it. What no loop writes (an array of one element, say) is sliced from the buffer
before the loops, and written into it after them.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxopt_keras.engine.native.fusion import Fusion, Region, is_same
from jaxopt_keras.engine.native.ir import PACK, UNPACK, Equation, Value
from jaxopt_keras.engine.native.loop import Leaf, Place, verified

MOST = 2**32  # elements of a buffer: places are words of 32 bits


class Repacked(NamedTuple):
    """A buffer after the loops that write into it. `rest`: the arrays that they do not write, by their start."""

    equation: Equation
    buffer: Value
    rest: dict[int, Value]

    def run(self, known: dict[Value, Any], flag: Any = None) -> Any:
        """The buffer. If `flag` is not set, it keeps its numbers."""
        whole = known[self.buffer]
        for start, x in self.rest.items():
            old = lax.slice(whole, (start,), (start + x.shape[0],))
            whole = lax.dynamic_update_slice(
                whole, known[x] if flag is None else jnp.where(flag, known[x], old), (start,)
            )
        return whole


class PackedOperands:
    """The packed buffers of a trace. Rewrites the loops of its regions to work within them.

    Args:
        partners: the input whose memory a result may take.
    """

    def __init__(self, fusion: Fusion, partners: dict[Any, Value]) -> None:
        self.fusion, self.places, self.repacked = fusion, dict[Value, Place](), list[Repacked]()
        self._regions: dict[Any, Region] = {e: r for r in fusion.regions if not r.reason for e in r.equations}
        unpacks = {e.values[0]: e for e in fusion.trace.equations if e.name == UNPACK}
        unpacks = {x: e for x, e in unpacks.items() if x.shape[0] < MOST}
        for buffer, e in unpacks.items():
            self.places |= {x: Place(buffer, start) for start, x in spans(e.outputs) if self._reader(x)}
        for e in [e for e in fusion.trace.equations if e.name == PACK]:
            buffer = partners.get(e.outputs[0])
            if buffer in unpacks and fusion.users[buffer] == [unpacks[buffer]]:
                self._repack(e, buffer, unpacks[buffer])
        for region in fusion.regions:
            region.leaves = {level: self._packed(leaf) for level, leaf in region.leaves.items()}

    def _repack(self, pack: Equation, buffer: Value, unpack: Equation) -> None:
        """Includes what loops write into places that nothing else reads."""
        if [(x.shape, x.dtype) for x in pack.inputs] != [(x.shape, x.dtype) for x in unpack.outputs]:
            return
        written, rest = {}, {}
        for (start, old), new in zip(spans(unpack.outputs), pack.values, strict=True):
            region = self._writer(new)
            outside = [u for u in self.fusion.users[new] if self._regions.get(u) is not region]
            if region is not None and self._reader(old) is region and outside == [pack]:
                written[new] = Place(buffer, start)
            elif self._origin(new) is not old and 0 not in new.shape:
                rest[start] = new
        self.places |= written
        self.repacked.append(Repacked(pack, buffer, rest))
        self.fusion.owned.add(pack)

    def _origin(self, x: Value) -> Value:
        """The array that `x` is a reshape of."""
        while (maker := self.fusion.makers.get(x)) is not None and is_same(maker) and maker.values:
            (x,) = maker.values
        return x

    def _reader(self, x: Value) -> Region | None:
        """The region whose loops are all that reads `x`; None if there is no such region."""
        readers = [self._regions.get(u) for u in self.fusion.users.get(x, [None])]
        region = readers[0]
        return region if region and all(r is region for r in readers) and not region.scatters else None

    def _writer(self, x: Any) -> Region | None:
        """The region whose loops write `x`."""
        region = self._regions.get(self.fusion.makers.get(x))
        return region if region and any(x in leaf.outputs for leaf in region.leaves.values()) else None

    def _packed(self, leaf: Leaf) -> Leaf:
        """The leaf with its arrays in their packed buffers."""
        places = {x: self.places[x] for x in (*leaf.inputs, *leaf.outputs) if x in self.places}
        if not places:
            return leaf
        new = replace(leaf, places=places)
        number = {x: new.buffers.index(place.buffer) for x, place in places.items()}
        inputs, outputs = (
            tuple(operand._replace(buffer=number.get(x)) for operand, x in zip(operands, values, strict=True))
            for operands, values in ((leaf.loop.inputs, leaf.inputs), (leaf.loop.outputs, leaf.outputs))
        )
        return verified(replace(new, loop=replace(leaf.loop, inputs=inputs, outputs=outputs)))


def spans(arrays: Iterable[Value]) -> Iterable[tuple[int, Value]]:
    """The arrays of a packed buffer, with the start of each."""
    start = 0
    for x in arrays:
        yield start, x
        start += x.shape[0]
