"""The machine's limit: a copy, and a stream of the bytes of the step, with almost no arithmetic.

A step has to read the gradient, and to read and write the parameter and every slot: `Pass(1, 1 + slots)`. LAMB and
Adafactor need more than one pass over their arrays. On a CPU the stream is C over one flat array per operand, in
place, with OpenMP; without a C compiler, NumPy in one thread; elsewhere a jitted and donated function. If the limit is
set by arithmetic and not by memory, it is that arithmetic alone: Muon's matrix products, or forward and backward of a
train step.
"""

import ctypes
import functools
import hashlib
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import models
from benchmarks.problem import Problem, device
from benchmarks.timing import seconds

FLAGS = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]


class Pass(NamedTuple):
    """One pass over memory: the numbers of arrays that are read, and of arrays that are read and written."""

    reads: int
    updates: int

    @property
    def bytes(self) -> int:
        """Return the bytes for each float32 element."""
        return 4 * self.reads + 8 * self.updates


def passes(problem: Problem, slots: int) -> list[Pass]:
    """Return the passes that a step with `slots` arrays of state needs at least."""
    if problem.optimizer == "lamb":  # the norms of parameter and direction come first
        return [Pass(2, slots), Pass(slots, 1)]
    if problem.optimizer == "adafactor" and slots == 0:  # sums of rows and columns, the size of the step, the step
        return [Pass(1, 0), Pass(1, 0), Pass(1, 1)]
    return [Pass(1, 1 + slots)]


class Limit:
    """A `Run` that only moves bytes, or only multiplies."""

    def __init__(self, what: str, step: Callable[[], Any], bytes: int | None) -> None:
        self.what, self.bytes = what, bytes
        self._step, self._last = step, None

    def step(self) -> None:
        self._last = self._step()

    def block(self) -> None:
        jax.block_until_ready(self._last)


def limit(problem: Problem, slots: int, threads: int) -> Limit:
    """Return the limit of the problem's step. `slots`: the number of arrays of state as large as the parameters."""
    if problem.workload.kind == "training":
        return backward(problem)
    if problem.optimizer == "muon":
        return products(problem)
    over = passes(problem, slots)
    size = max(problem.workload.touched * problem.params[next(iter(problem.params))].dtype.itemsize // 4, 1)
    moved = size * sum(each.bytes for each in over)
    if device().platform != "cpu":
        return Limit("a jitted, donated stream", jitted_stream(over, size), moved)
    if (library := compiled()) is not None:
        return Limit(f"a stream in C, {threads} threads", c_stream(library, over, size, threads), moved)
    return Limit("a stream in NumPy, 1 thread", numpy_stream(over, size), moved)


def copy_bandwidth(size: int, threads: int) -> float:
    """Return the GB/s, read and written, of a copy of `size` float32 elements: the best of seven."""
    if device().platform != "cpu":
        x, function = jnp.ones(size, jnp.float32), jax.jit(lambda x: x * 1.000001)
        run = Limit("a copy", lambda: function(x), 8 * size)
    else:
        a, b = filled(size), filled(size)
        library = compiled()
        if library is None:
            run = Limit("a copy", lambda: np.copyto(a, b), 8 * size)
        else:
            pointers = [ctypes.c_void_p(x.ctypes.data) for x in (a, b)]
            run = Limit("a copy", lambda: library.copy(ctypes.c_long(size), threads, *pointers), 8 * size)
    seconds(run, 1)  # maps the pages
    return 8 * size / min(seconds(run, 1) for _ in range(7)) / 1e9


def filled(size: int) -> Any:
    return np.full(size, 1.0, np.float32)  # written, so that the pages are mapped


@functools.cache
def compiled() -> ctypes.CDLL | None:
    """Compile stream.c for this machine; None without a compiler that can."""
    compiler, source = os.environ.get("CC") or shutil.which("cc"), Path(__file__).with_name("stream.c")
    if compiler is None:
        return None
    key = hashlib.sha256(" ".join([compiler, *FLAGS]).encode() + source.read_bytes()).hexdigest()[:16]
    with tempfile.TemporaryDirectory(prefix=f"stream-{key}-") as folder:
        path = Path(folder, "stream.so")
        made = subprocess.run([compiler, *FLAGS, str(source), "-o", str(path)], capture_output=True)
        return ctypes.CDLL(str(path)) if made.returncode == 0 else None


def c_stream(library: ctypes.CDLL, over: list[Pass], size: int, threads: int) -> Callable[[], Any]:
    arrays = [filled(size) for _ in range(max(each.reads + each.updates for each in over))]
    pointers = (ctypes.c_void_p * len(arrays))(*[x.ctypes.data for x in arrays])

    def step() -> None:
        for reads, updates in over:
            library.stream(ctypes.c_long(size), threads, reads, updates, pointers)

    step.arrays = arrays  # type: ignore[attr-defined]  # keeps the arrays alive: the call has only their addresses
    return step


def numpy_stream(over: list[Pass], size: int) -> Callable[[], Any]:
    arrays = [filled(size) for _ in range(max(each.reads + each.updates for each in over))]

    def step() -> None:
        for reads, updates in over:
            for x in arrays[:reads]:
                x.max()
            for x in arrays[reads : reads + updates]:
                np.multiply(x, np.float32(1), out=x)

    return step


def jitted_stream(over: list[Pass], size: int) -> Callable[[], Any]:
    held = [[jnp.ones(size, jnp.float32) for _ in range(max(each.updates for each in over))]]
    only_read = [jnp.ones(size, jnp.float32) for _ in range(max(each.reads for each in over))]

    @functools.partial(jax.jit, donate_argnums=0)
    def step(updated: list[Any], read: list[Any]) -> list[Any]:
        for i, (reads, updates) in enumerate(over):
            if i:  # or XLA would merge two passes into one
                updated, read = jax.lax.optimization_barrier((updated, read))
            total = sum(read[1:reads], read[0]) * 1e-9
            if updates:
                updated = [x + total for x in updated[:updates]] + updated[updates:]
            else:
                updated = [updated[0].at[0].add(jnp.sum(total)), *updated[1:]]
        return updated

    def run() -> Any:
        held[0] = step(held[0], only_read)
        return held[0]

    return run


def products(problem: Problem) -> Limit:
    """Return the limit of Muon: the matrix products of Newton and Schulz's iteration only."""
    matrices = [p for p in problem.on_device[0].values() if p.ndim == 2]

    @jax.jit
    def step(matrices: list[Any]) -> list[Any]:
        found = []
        for x in matrices:
            x = x.T if x.shape[0] > x.shape[1] else x
            for _ in range(problem.hyper["ns_steps"]):
                a = x @ x.T
                x = (a @ a) @ x
            found.append(x)
        return found

    return Limit("its matrix products alone", lambda: step(matrices), None)


def backward(problem: Problem) -> Limit:
    """Return the limit of a train step: forward and backward, without the update."""
    params, function = problem.start(), jax.jit(jax.grad(models.loss))
    return Limit("forward and backward alone", lambda: function(params, problem.on_device[0]), None)


def slots_of(problem: Problem, state_bytes: int) -> int:
    """Return the size of the state in float32 arrays as large as the parameters."""
    return round(state_bytes / (4 * sum(math.prod(p.shape) for p in problem.params.values())))
