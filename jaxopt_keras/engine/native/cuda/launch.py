"""The backend for NVIDIA's GPUs: the loops of a phase as one kernel, which a launcher passes to the device."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_keras.engine.native.build import Unavailable
from jaxopt_keras.engine.native.cuda import kernel
from jaxopt_keras.engine.native.cuda.kernel import Computed, Layout
from jaxopt_keras.engine.native.cuda.render import render
from jaxopt_keras.engine.native.ir import Value
from jaxopt_keras.engine.native.loop import Leaf, Loop, kind_of, refusal
from jaxopt_keras.engine.native.phase import Joint, Phase
from jaxopt_keras.engine.native.prologue import Prologue

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
        sums: of a kernel that has run: for each total, that of all leaves.
    """

    launcher: Launcher
    sums: Sequence[Any] = ()

    def read_ends(self, phase: Phase, is_last: bool) -> None:
        """Compute scalars in the kernel: those of its loops, and with `is_last` those of the new state."""
        self.prologues = {leaf: phase.prologues[leaf] for leaf in self.leaves}
        self.last, self.old = (phase.last, phase.old) if is_last else (None, {})
        self.scalars = [*filter(None, [self.guard]), *(x.name for x in self.ends)]
        self.results = [*self.outputs, *self.written, *self.rows, *(self.last.values if self.last else [])]

    def native(self, *operands: Any) -> list[Any]:
        """The results by the kernel.

        Raises:
            Unavailable: if it cannot be compiled.
        """
        layout, results = self._layout(), self.shapes()
        new = self.last.values if self.last else []
        results += [jax.ShapeDtypeStruct(x.shape, x.aval.dtype) for x in new]
        blocks, count, totals = sum(map(kernel.chunks, self.leaves)), len(self.leaves), layout.totals
        if totals:
            results.append(jax.ShapeDtypeStruct((2 * blocks * totals,), jnp.uint32))  # partial totals in float64
            results += [jax.ShapeDtypeStruct(shape, layout.result) for shape in ((count,), ()) for _ in range(totals)]
        numbers, first = self._numbers(), len(self.scalars)
        table = kernel.table(layout, self.leaves, [self.prologues[leaf][1] for leaf in self.leaves], numbers)
        cases = kernel.pointers(self.leaves, numbers)
        made = Kernel(layout, table, cases, len(operands) + len(results), blocks)
        if made.parameters > kernel.POINTERS:
            raise Unavailable(f"a kernel would have {made.parameters} parameters, more than {kernel.POINTERS}")
        aliases = self.pairs(first, first + len(self.buffers))
        after = len(self.outputs) + len(self.written)
        aliases |= {self.scalars.index(self.old[x]): after + k for k, x in enumerate(new)}
        out = self.launcher.launch(made, results, aliases, [*map(jnp.asarray, operands)])
        rows, self.sums = (out[-2 * totals : -totals], out[-totals:]) if totals else ((), ())
        return [*out[:after], *rows, *out[after : after + len(new)]]

    def reduced(self, joint: Joint, rest: dict[Value, None]) -> Iterator[Any]:
        """The numbers that stand for some totals of a joint, which are removed from `rest`."""
        for k, total in enumerate(self.sums):
            totals = [
                f.totals[k] for f in self.leaves if [x.name for x in f.loop.totals[k : k + 1]] == [joint.reduction]
            ]
            if len(totals) == len(self.leaves) and all(x in rest for x in totals):
                for x in totals:
                    del rest[x]
                yield total.astype(joint.value.aval.dtype)

    def _layout(self) -> Layout:
        number = {x: k for k, x in enumerate(self.scalars)}

        def computed(prologue: Prologue) -> Computed:
            return Computed(prologue.loop, tuple(number[x.name] for x in prologue.ends))

        of = {kind_of(leaf.loop): self.prologues[leaf][0] for leaf in self.leaves}
        prologues = tuple(map(computed, of.values()))
        last = computed(self.last) if self.last else None
        return Layout(tuple(of), prologues, last, self.guard is not None)

    def _numbers(self) -> dict[Any, int]:
        """The number of each pointer: first those of the operands, then those of the results."""
        reads, writes = self.operands, [*self.outputs, *self.written]
        numbers: dict[Any, int] = {(x, False): k for k, x in enumerate(reads)}
        numbers |= {(x, True): len(reads) + k for k, x in enumerate(writes)}
        return numbers | {"rest": len(reads) + len(writes)}


def kinds_of(leaves: Iterable[Leaf]) -> tuple[Loop, ...]:
    return tuple(dict.fromkeys(kind_of(leaf.loop) for leaf in leaves))


class InCuda:
    """Runs the loops of a phase in as few launches as the limits of a kernel allow."""

    has_guards = True

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher

    def unavailable(self) -> str:
        return self.launcher.unavailable()

    def refuses(self, leaf: Leaf) -> str:
        return "2^31 elements or more" if leaf.count >= MOST else refusal(render, leaf.loop)

    def parts(self, phase: Phase, numbers: list[int]) -> Iterator[Launch]:
        if not numbers:
            return
        layout = Layout(kinds_of(phase.leaves[i] for i in numbers))
        order = sorted(numbers, key=lambda i: layout.loops.index(kind_of(phase.leaves[i].loop)))
        part, parts = [], list[list[int]]()
        new = len(phase.last.columns) if phase.last else 0
        pointers = first = len(phase.scalars) + 2 * len(phase.buffers) + new + 1 + 2 * layout.totals
        for i in order:
            leaf = phase.leaves[i]
            own = len(leaf.unpacked(leaf.inputs)) + len(leaf.unpacked(leaf.outputs))
            if part and (pointers + own > kernel.POINTERS or layout.words(len(part) + 1) > kernel.WORDS):
                part, pointers = [], first
            if not part:
                parts.append(part)
            part.append(i)
            pointers += own
        for part in parts:
            launch = Launch.part(phase, part)
            launch.launcher = self.launcher
            launch.read_ends(phase, part is parts[-1])
            yield launch
