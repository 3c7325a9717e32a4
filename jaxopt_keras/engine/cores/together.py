"""The update of many arrays whose rule decomposes matrices: the decompositions of all arrays are done together.

A rule is written for one array: every k steps, in a `cond`, it decomposes the matrices of that array. Here the update
of each array is cut where it branches and where it decomposes. All arrays whose branches depend on the same numbers
enter one `cond`, and in it the matrices of one size are one stack, which is divided among devices (`stacked.py`).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import Array

from jaxopt_keras.engine.cores.jobs import Job
from jaxopt_keras.engine.cores.rule_state import traced_once
from jaxopt_keras.engine.cores.stacked import Results, map_matrices
from jaxopt_keras.engine.native.ir import Atom, Constant, Equation, Trace, Value, evaluate, needed, traced

DECOMPOSITIONS = {"eigh", "eig", "svd", "qr", "lu", "schur", "hessenberg", "cholesky"}  # of one matrix each
EXPENSIVE = {*DECOMPOSITIONS, "triangular_solve"}  # for which branches of many arrays become one

Known = dict[Value, Any]


@dataclasses.dataclass
class Work:
    """An equation that is computed together with those of other arrays."""

    equation: Equation
    branches: list["Cut"]  # of a `cond`
    is_read: list[bool]  # of each result


class Cut:
    """A function of arrays as stages, each of common equations and of works that need their results."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        read = {x for e in trace.equations for x in e.values} | {*trace.outputs}
        level: dict[Any, int] = {}
        self.stages: list[tuple[list[Equation], list[Work]]] = []
        for e in trace.equations:
            at = max((level.get(x, 0) for x in e.values), default=0)
            if len(self.stages) == at:
                self.stages.append(([], []))
            branches = cut_branches(e) if e.name == "cond" else []
            is_work = (e.name in DECOMPOSITIONS and 0 not in e.inputs[0].shape) or bool(branches)
            if is_work:
                self.stages[at][1].append(Work(e, branches, [x in read for x in e.outputs]))
            else:
                self.stages[at][0].append(e)
            level.update(dict.fromkeys(e.outputs, at + is_work))
        self.runs = [self._run(i) for i in range(len(self.stages))]

    @property
    def is_expensive(self) -> bool:
        return any(works for _, works in self.stages) or any(e.name in EXPENSIVE for e in self.trace.equations)

    def _run(self, number: int) -> Callable[[Known], None]:
        """Return a function that adds the results of the common equations of a stage; traced once for all arrays."""
        equations, _ = self.stages[number]
        inside = {x for e in equations for x in e.outputs}
        others = [e for own, works in self.stages for e in (*own, *(work.equation for work in works))]
        others = [e for e in others if not any(x in inside for x in e.outputs)]
        read = {x for e in others for x in e.values} | {*self.trace.outputs}
        inputs = [*dict.fromkeys(x for e in equations for x in e.values if x not in inside)]
        outputs = [x for x in dict.fromkeys(x for e in equations for x in e.outputs) if x in read]

        @jax.jit
        def update(arrays: list[Any]) -> list[Any]:
            known = dict(zip(inputs, arrays, strict=True))
            evaluate(equations, known)
            return [known[x] for x in outputs]

        def run(known: Known) -> None:
            if equations:
                known.update(zip(outputs, update([known[x] for x in inputs]), strict=True))

        return run

    def origin(self, x: Atom, known: Known, interned: dict[Any, int]) -> int:
        """Return a number for a value. Two have the same one if equal equations compute them from the same arrays."""
        numbers: dict[Value, int] = {}

        def number(x: Atom) -> int:
            if isinstance(x, Value) and x in numbers:
                return numbers[x]
            key = x if isinstance(x, Constant) else id(known[x])
            return interned.setdefault(key, len(interned))

        for e in needed(self.trace.equations, [x]):
            key = (e.kind, *map(number, e.inputs))
            numbers |= {y: interned.setdefault((*key, i), len(interned)) for i, y in enumerate(e.outputs)}
        return number(x)


def cut_branches(e: Equation) -> list[Cut]:
    """Return the branches of a `cond`; none if they do nothing expensive."""
    cuts = [Cut(traced(branch)) for branch in e.params["branches"]]
    return cuts if any(cut.is_expensive for cut in cuts) else []


def update_together(function: Callable[..., Any], jobs: list[Job]) -> list[Any]:
    """Return `function(skeleton, *job)`, which is one array's step and new slots, of each job."""
    known: dict[Any, Any] = {}
    cuts: dict[Any, tuple[Cut, Any]] = {}
    out = list[Any](jobs)
    cut = list[tuple[int, Cut, Any]]()
    for i, job in enumerate(jobs):
        run, arguments = traced_once(function, job.skeleton, known), job[1:]
        leaves, structure = jax.tree.flatten(arguments)
        key = run, structure, *map(jax.typeof, leaves)
        if key not in cuts:
            closed, shapes = jax.make_jaxpr(run, return_shape=True)(*arguments)
            cuts[key] = Cut(traced(closed)), jax.tree.structure(shapes)
        if any(works for _, works in cuts[key][0].stages):
            cut.append((i, *cuts[key]))
        else:
            out[i] = run(*arguments)
    found = run_together([each for _, each, _ in cut], [jax.tree.leaves(jobs[i][1:]) for i, *_ in cut])
    for (i, _, structure), results in zip(cut, found, strict=True):
        out[i] = jax.tree.unflatten(structure, results)
    return out


def run_together(cuts: list[Cut], arguments: list[list[Any]]) -> list[list[Any]]:
    """Return the results of each function, with the works of all together."""
    knowns: list[Known] = [
        cut.trace.constants | dict(zip(cut.trace.inputs, own, strict=True))
        for cut, own in zip(cuts, arguments, strict=True)
    ]
    interned: dict[Any, int] = {}
    for number in range(max((len(cut.stages) for cut in cuts), default=0)):
        groups: dict[Any, list[tuple[Work, Known]]] = {}
        for cut, known in zip(cuts, knowns, strict=True):
            if number < len(cut.stages):
                cut.runs[number](known)
                for work in cut.stages[number][1]:
                    groups.setdefault(_key(cut, work, known, interned), []).append((work, known))
        for members in groups.values():
            results = (_branched if members[0][0].branches else _decomposed)(members)
            for (work, known), own in zip(members, results, strict=True):
                known.update(zip(work.equation.outputs, own, strict=True))
    return [[_read(x, known) for x in cut.trace.outputs] for cut, known in zip(cuts, knowns, strict=True)]


def _read(x: Atom, known: Known) -> Any:
    return x.value if isinstance(x, Constant) else known[x]


def _key(cut: Cut, work: Work, known: Known, interned: dict[Any, int]) -> Any:
    """Return a key that is equal for works that are done together."""
    e = work.equation
    if work.branches:
        return len(work.branches), cut.origin(e.inputs[0], known, interned)
    x = e.inputs[0]
    return e.kind, x.shape[-2:], x.dtype, *work.is_read


def _branched(members: list[tuple[Work, Known]]) -> list[list[Any]]:
    """Enter one `cond` for all. Their indices are equal."""
    work, known = members[0]
    operands = [[_read(x, known) for x in work.equation.inputs[1:]] for work, known in members]
    branch = lambda number: run_together([work.branches[number] for work, _ in members], operands)
    run = [functools.partial(branch, number) for number in range(len(work.branches))]
    return jax.lax.switch(_read(work.equation.inputs[0], known), run)


def _decomposed(members: list[tuple[Work, Known]]) -> list[list[Any]]:
    """Decompose all matrices, which have one shape. A result that no equation reads is not computed."""
    first = members[0][0]

    def decompose(_: Any, x: Array) -> Results:
        return tuple(x for x, is_read in zip(first.equation.run([x]), first.is_read, strict=True) if is_read)

    arrays = [_read(work.equation.inputs[0], known) for work, known in members]
    stacks = [x.reshape(-1, *x.shape[-2:]) for x in arrays]
    # A loop would need less memory, but XLA takes three times as long to compile the program.
    found = map_matrices(decompose, {}, stacks, in_rounds=False)
    out = []
    for x, own in zip(arrays, found, strict=True):
        results = iter(y.reshape(*x.shape[:-2], *y.shape[1:]) for y in own)
        out.append([next(results) if is_read else None for is_read in first.is_read])
    return out
