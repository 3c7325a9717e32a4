"""The backend for NVIDIA's GPUs: the loops of a phase as one kernel, which a launcher passes to the device."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_keras.engine.native.cuda import kernel
from jaxopt_keras.engine.native.cuda.kernel import Layout, kind_of
from jaxopt_keras.engine.native.cuda.render import render
from jaxopt_keras.engine.native.ir import Value
from jaxopt_keras.engine.native.loop import Leaf, Loop, refusal
from jaxopt_keras.engine.native.phase import Joint, Phase, words
from jaxopt_keras.packing.trees import concatenate

MOST = 2**31  # elements of an array: its places are words of 32 bits


class Kernel(NamedTuple):
    """A kernel that fits one call."""

    layout: Layout
    table: np.ndarray
    cases: tuple[tuple[int, ...], ...]  # the parameters of each leaf
    parameters: int
    blocks: int  # of threads

    def source(self, form: str) -> str:
        return kernel.source(self.layout, *((self.parameters, self.cases) if form == "switch" else ()))


class Launcher(Protocol):
    """Passes kernels to a device."""

    def unavailable(self) -> str:
        """Return why it cannot; "" if it can."""
        ...

    def launch(self, made: Kernel, results: list[Any], aliases: dict[int, int], operands: list[Any]) -> Sequence[Any]:
        """Return the results of a kernel.

        Args:
            results: their shapes and dtypes.
            aliases: operand -> result that takes its memory.

        Raises:
            Unavailable: if the kernel cannot be compiled.
        """
        ...


class Launch(Phase):
    """Loops as one kernel, with the leaves in the order of their kinds.

    Attributes:
        rows: the totals of a kernel that has run: an array for each total, with one number for each leaf, and
            one for all.
    """

    launcher: Launcher
    rows: Sequence[Any] = ()

    def native(self, *operands: Any) -> list[Any]:
        """The results by the kernel.

        Raises:
            Unavailable: if it cannot be compiled.
        """
        layout, results = Layout(kinds_of(self), self.guard is not None), self.shapes()
        scalars, rows = self._scalars(dict(zip(self.operands, operands, strict=True)), layout)
        arrays = [scalars, *operands[len(self.scalars) :]]
        blocks, count, wide = sum(map(kernel.chunks, self.leaves)), len(self.leaves), layout.totals
        if wide:
            results.append(jax.ShapeDtypeStruct((2 * blocks * wide,), jnp.uint32))  # partial totals in float64
            results.append(jax.ShapeDtypeStruct((wide, count + 1), layout.result))
        numbers = self._numbers(len(arrays))
        table, cases = kernel.table(layout, self.leaves, rows, numbers), kernel.pointers(self.leaves, numbers)
        made = Kernel(layout, table, cases, len(arrays) + len(results), blocks)
        out = self.launcher.launch(made, results, self.pairs(1, 1 + len(self.buffers)), arrays)
        self.rows = [*out[-1]] if wide else []
        totals = [
            self.rows[k][i].astype(x.aval.dtype).reshape(x.shape)
            for i, f in enumerate(self.leaves)
            for k, x in enumerate(f.totals)
        ]
        return [*out[: len(self.outputs) + len(self.written)], *totals]

    def reduced(self, joint: Joint, rest: dict[Value, None]) -> Iterator[Any]:
        """The numbers that stand for some totals of a joint, which are removed from `rest`: the last one of a row."""
        for k, row in enumerate(self.rows):
            totals = [
                f.totals[k] for f in self.leaves if [x.name for x in f.loop.totals[k : k + 1]] == [joint.reduction]
            ]
            if len(totals) == len(self.leaves) and all(x in rest for x in totals):
                for x in totals:
                    del rest[x]
                yield row[-1].astype(joint.value.aval.dtype)

    def row(self, totals: tuple[Value, ...]) -> Any:
        """Totals as an array; None if they are not next to each other."""
        for k, row in enumerate(self.rows):
            mine = [x for leaf in self.leaves for x in (leaf.totals[k : k + 1] or (None,))]
            start = mine.index(totals[0]) if totals[0] in mine else len(mine)
            if mine[start : start + len(totals)] == [*totals]:
                return row[start : start + len(totals)].astype(totals[0].aval.dtype)
        return None

    def _scalars(self, known: dict[Value, Any], layout: Layout) -> tuple[Any, list[int]]:
        """The flag, the scalars of all leaves, one kind after the other, and where those of each leaf start."""
        parts = [] if self.guard is None else [words(known[self.guard])]
        rows, start = [], len(parts)
        for kind in layout.loops:
            mine = [i for i, leaf in enumerate(self.leaves) if kind_of(leaf.loop) == kind]
            own = Phase.part(self, mine).words(known)
            count, width = own.shape
            rows += [start + (i * width if count > 1 else 0) for i in range(len(mine))]
            parts.append(own.reshape(-1))
            start += count * width
        return concatenate(parts), rows

    def _numbers(self, operands: int) -> dict[Any, int]:
        """The number of each pointer: first those of the operands, then those of the results."""
        reads = [*self.buffers, *(x for leaf in self.leaves for x in leaf.unpacked(leaf.inputs))]
        writes = [*self.outputs, *self.written]
        numbers: dict[Any, int] = {(x, False): 1 + k for k, x in enumerate(reads)}
        numbers |= {(x, True): operands + k for k, x in enumerate(writes)}
        return numbers | {"partial": operands + len(writes)}


def kinds_of(phase: Phase) -> tuple[Loop, ...]:
    return tuple(dict.fromkeys(kind_of(leaf.loop) for leaf in phase.leaves))


class InCuda:
    """Runs the loops of a phase in as few launches as the limits of a kernel allow."""

    has_guards = True

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher

    def unavailable(self) -> str:
        return self.launcher.unavailable()

    def refuses(self, leaf: Leaf) -> str:
        return "2^31 elements or more" if leaf.count >= MOST else refusal(render, leaf.loop)

    def parts(self, phase: Phase) -> Iterator[Launch]:
        layout = Layout(kinds_of(phase))
        order = sorted(range(len(phase.leaves)), key=lambda i: layout.loops.index(kind_of(phase.leaves[i].loop)))
        part: list[int] = []
        pointers = first = 3 + 2 * len(phase.buffers)
        for i in order:
            leaf = phase.leaves[i]
            own = len(leaf.unpacked(leaf.inputs)) + len(leaf.unpacked(leaf.outputs))
            if part and (pointers + own > kernel.POINTERS or layout.words(len(part) + 1) > kernel.WORDS):
                yield self._launch(phase, part)
                part, pointers = [], first
            part.append(i)
            pointers += own
        if part:
            yield self._launch(phase, part)

    def _launch(self, phase: Phase, numbers: list[int]) -> Launch:
        launch = Launch.part(phase, numbers)
        launch.launcher = self.launcher
        return launch
