"""Arrays that lie in one buffer, a pool: loops read and write them there.

A step takes a pool apart and puts its results together again. The loops take both in: they get the pool itself, with
the places of its parts, and write into it. What is not a loop's (an array of one element, say) is cut out of the pool
before the loops, and put in after them.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

from jax import lax

from jaxopt_keras.engine.native.emit import Place
from jaxopt_keras.engine.native.regions import Phase, Region, Split, is_same
from jaxopt_keras.engine.native.trace import APART, TOGETHER, Equation, Value


class Rejoined(NamedTuple):
    """A pool after the loops that write into it. `rest`: what they do not write, by its place."""

    equation: Equation
    pool: Value
    rest: dict[int, Value]

    def run(self, known: dict[Value, Any]) -> Any:
        whole = known[self.pool]
        for start, x in self.rest.items():
            whole = lax.dynamic_update_slice(whole, known[x], (start,))
        return whole


class Pools:
    """The pools of a trace, with which the loops of its regions are made to work.

    Args:
        partners: the input whose memory a result may have.
    """

    def __init__(self, split: Split, partners: dict[Any, Value]) -> None:
        self._split = split
        self._regions = {id(e): r for r in split.regions if not r.reason for e in r.equations}
        self._places: dict[Value, Place] = {}
        self.rejoined: list[Rejoined] = []
        apart = {e.values[0]: e for e in split.trace.equations if e.name == APART}
        for pool, e in apart.items():
            self._places |= {x: Place(pool, start) for start, x in spans(e.outputs) if self._reader(x)}
        for e in split.trace.equations:
            pool = partners.get(e.outputs[0])
            if e.name == TOGETHER and pool is not None and pool in apart and split.users[pool] == [apart[pool]]:
                self._rejoin(e, pool, apart[pool])
        for region in split.regions:
            region.phases = {level: self._pooled(phase) for level, phase in region.phases.items()}

    def _rejoin(self, together: Equation, pool: Value, apart: Equation) -> None:
        """Takes in what loops write into places that nobody else reads."""
        if [(x.shape, x.dtype) for x in together.inputs] != [(x.shape, x.dtype) for x in apart.outputs]:
            return
        written, rest = {}, {}
        for (start, old), new in zip(spans(apart.outputs), together.values, strict=True):
            region = self._writer(new)
            outside = [u for u in self._split.users[new] if self._regions.get(id(u)) is not region]
            if region is not None and self._reader(old) is region and outside == [together]:
                written[new] = Place(pool, start)
            elif self._origin(new) is not old and 0 not in new.shape:
                rest[start] = new
        self._places |= written
        self.rejoined.append(Rejoined(together, pool, rest))
        self._split.owned.add(id(together))

    def _origin(self, x: Value) -> Value:
        """What `x` is in another shape."""
        while (maker := self._split.makers.get(x)) is not None and is_same(maker) and maker.values:
            (x,) = maker.values
        return x

    def _reader(self, x: Value) -> Region | None:
        """The region whose loops, and nobody else, read `x`."""
        readers = [self._regions.get(id(u)) for u in self._split.users.get(x, [None])]
        region = readers[0]
        if region is None or any(r is not region for r in readers) or region.scatters:
            return None
        return region if region.count < 2**32 else None  # the places are words of 32 bits

    def _writer(self, x: Any) -> Region | None:
        """The region whose last loop makes `x`."""
        region = self._regions.get(id(self._split.makers.get(x)))
        return region if region and x in region.phases[max(region.phases)].loop.outputs else None

    def _pooled(self, phase: Phase) -> Phase:
        """A loop that finds its arrays in their pools."""
        loop = phase.loop
        places = {x: self._places[x] for x in (*loop.inputs, *loop.outputs) if x in self._places}
        if not places:
            return phase
        pools = [*dict.fromkeys(place.pool for place in places.values())]

        def which(values: list[Value]) -> str:
            return ", ".join(str(pools.index(places[x].pool)) if x in places else "-1" for x in values) or "-1"

        head = f"#define POOLS {len(pools)}\n#define POOL_X {{ {which(loop.inputs)} }}\n"
        head += f"#define POOL_Y {{ {which(loop.outputs)} }}\n"
        return phase._replace(loop=replace(loop, source=head + loop.source, places=places))


def spans(parts: Iterable[Value]) -> Iterable[tuple[int, Value]]:
    """The parts of a pool, with where each starts."""
    start = 0
    for x in parts:
        yield start, x
        start += x.shape[0]
