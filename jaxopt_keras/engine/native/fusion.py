"""Which equations of a trace become loops: fusion by region.

A region is a connected set of equations on arrays with the same elements: in a step, the update of one parameter. A
region is native as a whole or not at all. A reduction to a scalar cuts it into phases (a norm, then what uses the
norm). Each phase is one loop, which recomputes what it needs of the phases before. A new slot that is known before the
norm is written by the first loop and read by the next one, if that moves fewer bytes. An operation that XLA cannot fuse
either (a sum over devices, a `cond`) is a barrier between two regions.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from jaxopt_keras.engine.native import early, rows
from jaxopt_keras.engine.native.alike import form, on
from jaxopt_keras.engine.native.c_ops import FLOATS
from jaxopt_keras.engine.native.cuda import render as cuda
from jaxopt_keras.engine.native.ir import (
    INTRINSICS,
    LOSS_AND_GRADIENTS,
    PACK,
    UNPACK,
    WRITE_COLUMNS,
    Atom,
    Equation,
    Trace,
    Value,
    is_scalar,
    needed,
)
from jaxopt_keras.engine.native.loop import REDUCTIONS, Leaf, Unsupported, built, is_total, pairs_of, refusal
from jaxopt_keras.engine.native.render_c import render_c

BARRIERS = (
    "cond",
    "while",
    "scan",
    "psum",
    "psum2",
    "psum_invariant",
    "optimization_barrier",
    UNPACK,
    PACK,
    WRITE_COLUMNS,
    LOSS_AND_GRADIENTS,
)
INDICES = "no numbers but indices"  # random seeds, the rows of sparse gradients: they cost XLA nothing
SAME = ("reshape", "squeeze", "expand_dims", "broadcast_in_dim", "copy", "copy_p", "stop_gradient")


class Moment(NamedTuple):
    """When an equation can run."""

    depth: int  # the number of barriers before it
    level: int  # the number of totals before it since the last barrier


@dataclass
class Region:
    """The connected equations on the elements of one array."""

    depth: int
    equations: list[Equation] = field(default_factory=list)
    reason: str = ""  # why XLA runs it; "" for a native one
    values: dict[Value, None] = field(default_factory=dict)
    leaves: dict[int, Leaf] = field(default_factory=dict)  # its loops, by level

    @property
    def count(self) -> int:
        """The number of elements."""
        return max(x.size for x in self.values)

    @property
    def scatters(self) -> list[Equation]:
        """The scatters of rows that its loop includes."""
        return [e for leaf in self.leaves.values() for e in leaf.equations if rows.is_scatter(e)]


class Fusion:
    """A trace and its regions, each with its loops or the reason why it has none.

    Args:
        partners: the input whose memory a result may take.
    """

    def __init__(self, trace: Trace, partners: Mapping[Any, Value] | None = None) -> None:
        self.trace = trace
        self.replaced = early.memory_of(trace, partners or {})
        self.makers = {x: e for e in trace.equations for x in e.outputs}
        self.moments: dict[Value, Moment] = {}
        self.starts = {e: self._moment(e) for e in trace.equations}
        self.filled: dict[Value, Equation] = {}  # arrays of which all elements are one scalar
        for e in trace.equations:
            if is_same(e) and not is_scalar(e.outputs[0]) and all(x in self.filled for x in e.arrays):
                self.filled[e.outputs[0]] = e
        self.rank = {e: k for k, e in enumerate(self.filled.values())}
        self.regions = self._connected()
        self.users: dict[Value, list[Equation | None]] = {x: [None] for x in trace.outputs if isinstance(x, Value)}
        for e in trace.equations:
            for x in e.values:
                self.users.setdefault(x, []).append(e)
        self.forms: dict[Any, tuple[Region, list[Equation], list[Value]]] = {}  # the first region of each form
        for region in self.regions:
            self._fuse(region)
        native = [r for r in self.regions if not r.reason]
        self.owned = {e for r in native for e in (*r.equations, *r.scatters)}

    def _moment(self, equation: Equation) -> Moment:
        """When `equation` can run. Records when its results are known."""
        at = max((self.moments.get(x, Moment(0, 0)) for x in equation.values), default=Moment(0, 0))
        known = at
        if is_barrier(equation):
            reads = rows.is_gather(equation) or equation.name == UNPACK
            if not (reads and all(self._is_settled(x) for x in equation.values)):
                at = known = Moment(at.depth + 1, 0)
        elif is_total(equation):
            known = Moment(at.depth, at.level + 1)
        self.moments |= dict.fromkeys(equation.outputs, known)
        return at

    def _is_settled(self, x: Value) -> bool:
        """Whether `x` is known before any loop of its depth: it is an input or the result of a barrier."""
        maker = self.makers.get(x)
        return maker is None or is_barrier(maker) or (is_same(maker) and all(map(self._is_settled, maker.values)))

    def _connected(self) -> list[Region]:
        """The regions: equations after the same barriers that share an array."""
        parent: dict[Any, Any] = {}

        def root(x: Any) -> Any:
            parent.setdefault(x, x)
            while parent[x] != x:
                parent[x] = x = parent[parent[x]]
            return x

        placed = []
        for e in self.trace.equations:
            arrays = [x for x in (*e.arrays, *e.outputs) if not is_scalar(x) and x not in self.filled]
            if is_barrier(e) or not arrays or e.outputs[0] in self.filled:
                continue
            depth = self.starts[e].depth
            nodes = [(x, depth) for x in arrays]
            for node in nodes[1:]:
                parent[root(node)] = root(nodes[0])
            placed.append((e, nodes, depth))
        regions: dict[Any, Region] = {}
        for e, nodes, depth in placed:
            region = regions.setdefault(root(nodes[0]), Region(depth))
            region.equations.append(e)
            region.values |= dict.fromkeys(x for x, _ in nodes)
        return [r for r in regions.values() if not all(map(is_same, r.equations))]  # a reshape costs XLA nothing

    def _fuse(self, region: Region) -> None:
        """Makes the loops of a region: those of the first region of its form, on its own values."""
        members = {*region.equations}
        made = [x for e in region.equations for x in e.outputs if not is_scalar(x)]
        outside = {x: [u for u in self.users.get(x, []) if u is None or u not in members] for x in made}
        outputs = [x for x in made if outside[x]]
        filled = self._filled_for(region)
        equations = [*filled, *region.equations]
        levels = *(self.starts[e].level for e in equations), *(self.moments[x].level for x in outputs)
        key, values = form(equations, outputs, [self.replaced.get(x) for x in outputs], (len(filled), *levels))
        if key not in self.forms:
            self.forms[key] = region, equations, values
            try:
                region.leaves = self._loops(region, filled, outputs)
            except Unsupported as error:
                region.reason = str(error)
        first, before, known = self.forms[key]
        region.reason = first.reason
        if first is not region:
            names = dict(zip([*known, *before], [*values, *equations], strict=True))
            region.leaves = {level: on(leaf, names) for level, leaf in first.leaves.items()}
        if len(region.leaves) == 1:
            ((level, leaf),) = region.leaves.items()
            region.leaves[level] = rows.in_place(leaf, self.makers, [outside[y] for y in leaf.outputs]) or leaf

    def _filled_for(self, region: Region) -> list[Equation]:
        """The equations that fill arrays with a scalar, for a region that reads these."""
        found: dict[Equation, None] = {}
        waiting = [x for e in region.equations for x in e.arrays]
        while waiting:
            e = self.filled.get(waiting.pop())
            if e is not None and e not in found:
                found[e] = None
                waiting += e.arrays
        return sorted(found, key=self.rank.__getitem__)

    def _loops(self, region: Region, filled: list[Equation], outputs: list[Value]) -> dict[int, Leaf]:
        """The loops of a region, by level.

        Args:
            filled: equations that fill arrays with a scalar.
            outputs: the arrays that others read.

        Raises:
            Unsupported: if an equation has no form in a loop.
        """
        alias, block = checked(region)
        alias |= {e.outputs[0]: e.inputs[0] for e in filled}
        totals: dict[int, list[Equation]] = {}
        for e in region.equations:
            if is_total(e):
                totals.setdefault(self.starts[e].level, []).append(e)
        equations = [*filled, *(e for e in region.equations if not is_total(e))]
        last = max(self.starts[e].level for e in region.equations)
        levels = sorted({*totals, last} if outputs else {*totals})

        def leaves(ahead: dict[Value, int]) -> dict[int, Leaf]:
            """The loops, which write `ahead` in their levels and all else in the last one, and read what is written."""
            found = {}
            for level in levels:
                # What earlier loops have written is read under the name of its output, which can have another shape.
                written = {origin(y, alias): y for y, at in ahead.items() if at < level}
                known = {*written, *written.values()}
                renamed = {x: y for x, y in written.items() if x is not y}
                names = {x: y for x, y in alias.items() if x not in known} | renamed
                wanted, reduced = [y for y in outputs if ahead.get(y, last) == level], totals.get(level, [])
                rest = [e for e in (*equations, *reduced) if e.outputs[0] not in known]
                computed = needed(rest, [*wanted, *(e.outputs[0] for e in reduced)])
                leaf = built(region.count, block, names, computed, wanted)
                found[level] = replace(leaf, written=tuple(x for x in renamed.items() if x[1] in leaf.inputs))
            return found

        whole = [y for y in outputs if origin(y, alias).size == y.size]  # not one number of each block, repeated
        known = {y: min(x for x in levels if x >= self.moments[y].level) for y in whole}
        found = early.best(leaves, known, self.replaced)
        for leaf in found.values():
            reasons = [refusal(render, leaf.loop) for render in (render_c, cuda.render)]
            if all(reasons):
                raise Unsupported(reasons[0])
            if not leaf.inputs:
                raise Unsupported("a loop without inputs")
        return found


def origin(x: Any, alias: Mapping[Value, Atom]) -> Any:
    while x in alias:
        x = alias[x]
    return x


def is_barrier(equation: Equation) -> bool:
    if rows.is_gather(equation) or rows.is_scatter(equation) or not equation.outputs:  # none: `jax.debug.print`
        return True
    return equation.name in BARRIERS and not all(is_scalar(x) for x in (*equation.inputs, *equation.outputs))


def is_same(equation: Equation) -> bool:
    """Whether the result has the numbers of its input, in another shape or with a type that is not weak."""
    if not equation.outputs:
        return False
    x, out = equation.inputs[0] if equation.inputs else None, equation.outputs[0]
    if equation.name in REDUCTIONS and x is not None:
        return x.size == out.size  # over axes of length 1
    return equation.name in SAME or (equation.name == "convert_element_type" and x is not None and x.dtype == out.dtype)


def checked(region: Region) -> tuple[dict[Value, Atom], int | None]:
    """The values of a region that are other names for values, and the length of its blocks (None without blocks).

    Raises:
        Unsupported: if an equation combines different elements.
    """
    alias: dict[Value, Atom] = {}
    if not any(x.dtype in FLOATS for x in region.values):
        raise Unsupported(INDICES)
    if any(0 in x.shape for x in region.values):
        raise Unsupported("an empty array")
    count = region.count
    if any(count % x.size for x in region.values):
        raise Unsupported("arrays of different sizes")
    packed = {x for e in region.equations for x in pairs_of(e)}
    lengths = {count // x.size for x in region.values if x not in packed} - {1}
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


def check(e: Equation, packed: set[Any]) -> None:
    """Checks that each element of the result depends on the same element, or block, of the inputs.

    Raises:
        Unsupported: if not.
    """
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
        if e.arrays[0].size != e.outputs[0].size or e.params.get("dimensions") and e.name == "reshape":
            raise Unsupported(e.name)
    elif not e.inputs or not all(leads(shape, out) for shape in arrays):
        raise Unsupported(e.name)
    elif e.name == "select_n" and (len(e.inputs) != 3 or e.inputs[0].dtype != "bool"):
        raise Unsupported("select_n of more than two")


def leads(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether `shape` is the first axes of `whole`, followed by ones: one number for each block of elements."""
    if len(shape) > len(whole):  # a product that also sums
        return False
    shape = shape + (1,) * (len(whole) - len(shape))
    split = next((i for i, (a, b) in enumerate(zip(shape, whole, strict=True)) if a != b), len(whole))
    return all(a == 1 for a in shape[split:])


def remaining(fusion: Fusion, besides: Iterable[Value]) -> list[Equation]:
    """The equations that XLA runs: those outside of loops that the results, the arrays of loops or `besides` depend on.

    Args:
        besides: with the scalars of loops.
    """
    leaves = [leaf for r in fusion.regions if not r.reason for leaf in r.leaves.values()]
    made = {x for leaf in leaves for x in (*leaf.outputs, *leaf.totals)}
    wanted: set[Any] = {x for x in (*fusion.trace.outputs, *besides) if x not in made}
    wanted |= {x for leaf in leaves for x in (*leaf.unpacked(leaf.inputs), *leaf.buffers)}
    return needed((e for e in fusion.trace.equations if e not in fusion.owned), wanted)
