"""Which equations of a trace become loops: the regions.

A region is a connected set of equations on arrays of the same elements: in a step, what is done to one parameter. It is
native as a whole or not at all. A reduction to a scalar cuts it into phases (a norm, then what uses the norm); each
phase is one loop, and computes anew what it needs of the phases before. What stands by itself in XLA too (a sum over
devices, a `cond`) is a barrier between two regions.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxopt_keras.engine.native import rows
from jaxopt_keras.engine.native.emit import SAME, Emitter, Loop
from jaxopt_keras.engine.native.trace import APART, INTRINSICS, TOGETHER, Atom, Equation, Trace, Value, is_scalar
from jaxopt_keras.engine.native.vocabulary import FLOATS, REDUCTIONS, Unsupported

BARRIERS = ("cond", "while", "scan", "psum", "psum2", "psum_invariant", "optimization_barrier", APART, TOGETHER)


class Moment(NamedTuple):
    """When an equation can run: after so many barriers, and after so many reductions since."""

    depth: int
    level: int


class Phase(NamedTuple):
    """A loop, and the equations that it stands for."""

    loop: Loop
    equations: list[Equation]


@dataclass
class Region:
    """What is done to the elements of one array. `reason`: why it is XLA's."""

    depth: int
    equations: list[Equation] = field(default_factory=list)
    reason: str = ""
    values: dict[Value, None] = field(default_factory=dict)
    phases: dict[int, Phase] = field(default_factory=dict)  # by level
    scatters: list[Equation] = field(default_factory=list)  # of rows, that its loop takes in

    @property
    def count(self) -> int:
        """Of the elements."""
        return max(math.prod(x.shape) for x in self.values)


class Split:
    """A trace and its regions."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.makers = {x: e for e in trace.equations for x in e.outputs}
        self.moments: dict[Value, Moment] = {}
        self.starts = {id(e): self._moment(e) for e in trace.equations}
        self.spread: dict[Value, Equation] = {}  # arrays that are one scalar throughout
        for e in trace.equations:
            if is_same(e) and not is_scalar(e.outputs[0]) and all(x in self.spread for x in e.arrays):
                self.spread[e.outputs[0]] = e
        self.regions = self._connected()
        self.users = self._users()
        for region in self.regions:
            try:
                self._lower(region)
            except Unsupported as error:
                region.reason = str(error)
        native = [r for r in self.regions if not r.reason]
        self.owned = {id(e) for r in native for e in (*r.equations, *r.scatters)}

    def _moment(self, equation: Equation) -> Moment:
        """When `equation` can run; notes when its results are known."""
        at = max((self.moments.get(x, Moment(0, 0)) for x in equation.values), default=Moment(0, 0))
        known = at
        if is_barrier(equation):
            reads = rows.is_gather(equation) or equation.name == APART
            if not (reads and all(self._is_settled(x) for x in equation.values)):
                at = known = Moment(at.depth + 1, 0)
        elif is_total(equation):
            known = Moment(at.depth, at.level + 1)
        self.moments |= dict.fromkeys(equation.outputs, known)
        return at

    def _is_settled(self, x: Value) -> bool:
        """Whether `x` is there before any loop of its depth: it comes from outside or from a barrier."""
        maker = self.makers.get(x)
        return maker is None or is_barrier(maker) or (is_same(maker) and all(map(self._is_settled, maker.values)))

    def _connected(self) -> list[Region]:
        """Equations that share an array, after the same barriers."""
        parent: dict[Any, Any] = {}

        def root(x: Any) -> Any:
            parent.setdefault(x, x)
            while parent[x] is not x:
                parent[x] = x = parent[parent[x]]
            return x

        placed = []
        for e in self.trace.equations:
            arrays = [
                x for x in (*e.inputs, *e.outputs) if isinstance(x, Value) and not is_scalar(x) and x not in self.spread
            ]
            if is_barrier(e) or not arrays or e.outputs[0] in self.spread:
                continue
            depth = self.starts[id(e)].depth
            nodes = [_Node(x, depth) for x in arrays]
            for node in nodes[1:]:
                parent[root(node)] = root(nodes[0])
            placed.append((e, nodes, depth))
        regions: dict[Any, Region] = {}
        for e, nodes, depth in placed:
            region = regions.setdefault(root(nodes[0]), Region(depth))
            region.equations.append(e)
            region.values |= dict.fromkeys(x.value for x in nodes)
        return [r for r in regions.values() if not all(map(is_same, r.equations))]  # a reshape costs XLA nothing

    def _users(self) -> dict[Value, list[Equation | None]]:
        users: dict[Value, list[Equation | None]] = {x: [None] for x in self.trace.outputs if isinstance(x, Value)}
        for e in self.trace.equations:
            for x in e.values:
                users.setdefault(x, []).append(e)
        return users

    def _lower(self, region: Region) -> None:
        """Writes the loops of a region.

        Raises:
            Unsupported: where there is something that has no loop.
        """
        alias, block = checked(region)
        alias |= {x: e.inputs[0] for x, e in self.spread.items()}
        members = {id(e) for e in region.equations}
        made = [x for e in region.equations for x in e.outputs if not is_scalar(x)]
        leaving = {x: [u for u in self.users.get(x, []) if u is None or id(u) not in members] for x in made}
        outputs = [x for x in made if leaving[x]]
        totals: dict[int, list[Equation]] = {}
        for e in region.equations:
            if is_total(e):
                totals.setdefault(self.starts[id(e)].level, []).append(e)
        equations = [e for e in region.equations if not is_total(e) and e.outputs[0] not in alias]
        last = max(self.starts[id(e)].level for e in region.equations)
        levels = {*totals, last} if outputs else {*totals}
        for level in sorted(levels):
            wanted = outputs if level == last else []
            sums = totals.get(level, [])
            loop = Emitter(region.count, block, alias).loop(equations, wanted, sums)
            if not loop.inputs:
                raise Unsupported("a loop without inputs")
            region.phases[level] = Phase(loop, self._behind(region, loop))
        if len(region.phases) == 1:
            loop, equations = region.phases[last]
            if found := rows.in_place(loop, self.makers, [leaving[y] for y in outputs]):
                taken, gathers, region.scatters = found
                region.phases[last] = Phase(taken, [*gathers, *equations, *region.scatters])

    def _behind(self, region: Region, loop: Loop) -> list[Equation]:
        """The equations that a loop computes, with those that spread its scalars."""
        needed: set[Any] = {*loop.outputs, *loop.sums}
        kept: list[Equation] = []
        for e in reversed(region.equations):
            if e.outputs[0] in needed and e.outputs[0] not in loop.inputs:
                kept.append(e)
                needed.update(e.values)
        for x, e in reversed(self.spread.items()):
            if x in needed:
                kept.append(e)
                needed.update(e.values)
        return kept[::-1]


class _Node(NamedTuple):
    """An array as equations see it that stand after so many barriers."""

    value: Value
    depth: int


def is_barrier(equation: Equation) -> bool:
    if rows.is_gather(equation) or rows.is_scatter(equation):
        return True
    return equation.name in BARRIERS and not all(is_scalar(x) for x in (*equation.inputs, *equation.outputs))


def is_same(equation: Equation) -> bool:
    """Whether the result has the numbers of its input, in another shape or with a firmer type."""
    to = equation.outputs[0].dtype
    return equation.name in SAME or (equation.name == "convert_element_type" and equation.inputs[0].dtype == to)


def is_total(equation: Equation) -> bool:
    """Whether it reduces a whole array to a scalar."""
    return equation.name.startswith(("reduce_", "arg")) and bool(equation.arrays) and is_scalar(equation.outputs[0])


def checked(region: Region) -> tuple[dict[Value, Atom], int | None]:
    """What is another name for what in a region, and the length of its blocks, None without blocks.

    Raises:
        Unsupported: where an equation mixes elements.
    """
    alias: dict[Value, Atom] = {}
    if not any(x.dtype in FLOATS for x in region.values):
        raise Unsupported("no numbers but indices")
    if any(0 in x.shape for x in region.values):
        raise Unsupported("an empty array")
    count = region.count
    if any(count % math.prod(x.shape) for x in region.values):
        raise Unsupported("arrays of different sizes")
    packed = {x for e in region.equations for x in pairs_of(e)}
    lengths = {count // math.prod(x.shape) for x in region.values if x not in packed} - {1}
    if len(lengths) > 1:
        raise Unsupported("blocks of different lengths")
    block = next(iter(lengths), None)
    if packed and (block is None or block % 2):
        raise Unsupported("pairs across blocks")
    for e in region.equations:
        check(e, packed)
        if is_same(e):
            alias[e.outputs[0]] = e.inputs[0]
    return alias, block


def pairs_of(e: Equation) -> Iterator[Atom]:
    """The arrays of an equation that hold two elements in one."""
    if e.name in ("pairs", "unpaired"):
        yield from e.outputs if e.name == "pairs" else e.inputs


def check(e: Equation, packed: set[Any]) -> None:
    """Raises Unsupported unless each element of the result comes of the same element, or of its block."""
    if len(e.outputs) != 1 or e.effects:
        raise Unsupported(e.name)
    if e.name in INTRINSICS or (is_total(e) and e.name in REDUCTIONS):
        return
    out, arrays = e.outputs[0].shape, [x.shape for x in e.arrays]
    if any(x in packed for x in (*e.arrays, e.outputs[0])):
        raise Unsupported(f"{e.name} of pairs")
    if e.name in REDUCTIONS:
        (shape,) = arrays
        if out != shape[: len(out)] or tuple(e.params["axes"]) != (*range(len(out), len(shape)),):
            raise Unsupported(f"{e.name} over outer axes")
    elif e.name == "broadcast_in_dim":
        (shape,) = arrays
        if tuple(e.params["broadcast_dimensions"]) != (*range(len(shape)),) or not leads(shape, out):
            raise Unsupported("broadcast along outer axes")
    elif is_same(e):
        if math.prod(arrays[0]) != math.prod(out) or e.params.get("dimensions") and e.name == "reshape":
            raise Unsupported(e.name)
    elif not e.inputs or not all(leads(shape, out) for shape in arrays):
        raise Unsupported(e.name)
    elif e.name == "select_n" and (len(e.inputs) != 3 or e.inputs[0].dtype != "bool"):
        raise Unsupported("select_n of more than two")


def leads(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether `shape` is the first axes of `whole`, with ones for the rest: a number for each block in a row."""
    if len(shape) > len(whole):  # a product that sums
        return False
    shape = shape + (1,) * (len(whole) - len(shape))
    split = next((i for i, (a, b) in enumerate(zip(shape, whole, strict=True)) if a != b), len(whole))
    return all(a == 1 for a in shape[split:])


def plain(split: Split, besides: Iterable[Value]) -> list[Equation]:
    """The equations that XLA runs: what no loop makes and the loops, the results or `besides` need."""
    native = [r for r in split.regions if not r.reason]
    loops = [phase.loop for r in native for phase in r.phases.values()]
    made = {x for loop in loops for x in (*loop.outputs, *loop.sums)}
    needed: set[Any] = {x for x in (*split.trace.outputs, *besides) if x not in made}
    needed |= {x for loop in loops for x in (*loop.apart(loop.inputs), *loop.pools, *loop.scalars)}
    kept = []
    for e in reversed(split.trace.equations):
        if id(e) in split.owned:
            continue
        if e.effects or any(x in needed for x in e.outputs):
            kept.append(e)
            needed.update(e.values)
    return kept[::-1]
