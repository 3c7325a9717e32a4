"""Several programs, each over its own part of one tree of parameters, a group.

state.count      the greatest count of any group
state.scalars    {group: its scalars, and its `step`}, and the guard's counter
state.slots      trees like the parameters, whatever the groups are
hyper            {group: its hyperparameters}
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import jax
import optax
from jax.tree_util import Partial

from jaxopt_keras.engine.core import Layout, Leaf, Program
from jaxopt_keras.engine.given import FUNCTION
from jaxopt_keras.engine.plan import Plan, cond_notes, joined
from jaxopt_keras.engine.programs.around import Around
from jaxopt_keras.engine.programs.multi import Multi
from jaxopt_keras.engine.stages import guard
from jaxopt_keras.engine.state import State
from jaxopt_keras.engine.state_check import check_names
from jaxopt_keras.engine.unused_patterns import Unused
from jaxopt_keras.language.paths import leaves_by_path
from jaxopt_keras.language.places import platform
from jaxopt_keras.packing.trees import Packed, unpacked

STEP = "step"


@dataclass(frozen=True)
class Partitioned(Around):
    """Runs each program of `inner` on the parameters to whose path `router` assigns the program's name."""

    inner: Multi
    names: tuple[str, ...]
    router: Any

    @property
    def children(self) -> tuple[Program, ...]:
        return self.inner.children

    @property
    def groups(self) -> dict[str, Program]:
        return dict(zip(self.names, self.children, strict=True))

    def init(self, params: Any, hyper: dict[str, Any]) -> State:
        tree = Tree(self, params)
        return tree.joined(self.inner.init(tree.split(params), self._listed(hyper)))

    def call(self, params: Any, state: State, grads: Any, hyper: dict[str, Any], reduce: bool, write: bool) -> Any:
        check_names("scalars", state.scalars, [*self.names, *guard.init(self.options)])
        tree = Tree(self, params, grads)
        parts = tree.split(params), tree.separated(state), tree.split(grads)
        out, moved = self.inner.call(*parts, tree.with_function(self._listed(hyper), params), reduce, write)
        return tree.merged(out), tree.joined(moved)

    def averaged(self, params: Any, state: State, hyper: dict[str, Any]) -> Any:
        tree = Tree(self, params)
        return tree.merged(self.inner.averaged(tree.split(params), tree.separated(state), self._listed(hyper)))

    def summed(self, params: Any, grads: Any, hyper: Any, reduce: bool = True) -> tuple[Any, Any]:
        tree = Tree(self, params, grads)
        parts = tree.split(params), tree.split(grads), self._listed(hyper)
        total, hypers = self.inner.summed(*parts, reduce)
        return tree.merged(total), dict(zip(self.names, hypers, strict=True))

    def parts(self, params: Any) -> list[Any]:
        own = zip(self.children, Tree(self, params).split(params), strict=True)
        return [part for program, tree in own for part in program.parts(tree)]

    def unused(self, paths: Sequence[str]) -> list[Unused]:
        """Return the patterns that no path selects, and those of each group that are found in none of its paths."""
        groups = self.router(tuple(paths))
        found = [Unused("kernels", x, tuple(paths)) for x in self.router.patterns if paths and x not in groups]
        for name, program in self.groups.items():
            found += program.unused([path for path, group in zip(paths, groups, strict=True) if group == name])
        return found

    def hyper(self) -> dict[str, Any]:
        return {name: program.hyper() for name, program in self.groups.items()}

    def offered(self, hyper: Any, given: dict[str, Any]) -> Any:
        return {name: program.offered(hyper[name], given) for name, program in self.groups.items()}

    def injected(self, hyper: dict[str, Any]) -> dict[str, Any]:
        found = {name: program.injected(hyper[name]) for name, program in self.groups.items()}
        return {name: values for name, values in found.items() if values}

    def schedules(self, injected: bool = True) -> dict[str, Any]:
        found = {name: program.schedules(injected) for name, program in self.groups.items()}
        return {name: schedules for name, schedules in found.items() if schedules}

    def replaced(self, **numbers: Any) -> Self:
        """Return the program with other hyperparameters in every group that has them all."""
        having = {name for name, program in self.groups.items() if numbers.keys() <= program.hyper().keys()}
        if not having:
            known = {name: sorted(program.hyper()) for name, program in self.groups.items()}
            raise ValueError(f"No group has the hyperparameters {sorted(numbers)}. There are {known}")
        programs = [p.replaced(**numbers) if name in having else p for name, p in self.groups.items()]
        return dataclasses.replace(self, inner=dataclasses.replace(self.inner, programs=tuple(programs)))

    def describe(self, params: Any, state: Any = None) -> Plan:
        """Return the plans of the groups as one; the pattern of a group precedes its rule."""
        tree = Tree(self, params)
        states = [None] * len(self.names) if state is None else tree.separated(state).slots
        named = zip(self.groups.items(), tree.split(params), states, strict=True)
        groups = joined(program.describe(own, s).in_group(name) for (name, program), own, s in named)
        is_guarded = guard.is_on(self.options) and platform() != "tpu"
        return groups.noted(cond_notes(["one guard around several groups"] if is_guarded else []))

    def _listed(self, hyper: dict[str, Any]) -> list[Any]:
        return [hyper[name] for name in self.names]


class Tree:
    """A tree of parameters, and its conversion to the trees of its groups and back.

    Raises:
        ValueError: if two parameters have the same path.
    """

    def __init__(self, program: Partitioned, params: Any, grads: Any = None) -> None:
        self.names, self.like = program.names, grads if params is None else params
        of_gradients = params is None and grads is not None
        tree, is_leaf = (unpacked(grads), lambda x: x is None) if of_gradients else (unpacked(params), None)
        paths = [path for path, _ in leaves_by_path(tree, is_leaf)]
        # The programs of the groups tell which leaves are frozen.
        structure = jax.tree.structure(tree, is_leaf=is_leaf)
        self.layout = Layout(structure, tuple(Leaf(path, decays=False) for path in paths), {})
        if len(set(paths)) < len(paths):
            twice = next(path for path in paths if paths.count(path) > 1)
            raise ValueError(f"A partition needs a distinct path for each parameter. Received: `{twice}` twice")
        self.group = dict(zip(paths, program.router(tuple(paths)), strict=True))

    def split(self, tree: Any) -> list[Any]:
        """Split a tree like the parameters into the parts of the groups, each {path: leaf}, or None for None."""
        if tree is None:
            return [None] * len(self.names)
        parts: dict[str, dict[str, Any]] = {name: {} for name in self.names}
        for path, x in zip(self.group, self.layout.flatten(unpacked(tree), "grads or params"), strict=True):
            parts[self.group[path]][path] = x
        return list(parts.values())

    def with_function(self, hypers: list[Any], params: Any) -> list[Any]:
        """Return the run-time values of the groups; for the loss function of each the others are constant."""
        if params is None or not any(FUNCTION in hyper for hyper in hypers if isinstance(hyper, dict)):
            return hypers
        parts = self.split(params)

        def of_group(i: int, run: Any) -> Any:
            def inside(floats: list[Any], unflatten: Any, flatten: Any) -> Any:
                whole = lambda x: self.merged([*parts[:i], unflatten(x), *parts[i + 1 :]])
                return run(floats, whole, lambda grads: flatten(self.split(grads)[i]))

            return Partial(inside)

        return [h | {FUNCTION: of_group(i, h[FUNCTION])} if FUNCTION in h else h for i, h in enumerate(hypers)]

    def merged(self, parts: list[dict[str, Any]]) -> Any:
        """Join the parts of all groups to a tree like the parameters, packed if they are."""
        tree = self.unpacked(parts)
        return self.like.like(tree) if isinstance(self.like, Packed) else tree

    def separated(self, state: State) -> State:
        """Convert a state of the whole to one of `Multi`."""
        states, others = [], dict(state.scalars)
        parts = {name: self.split(tree) for name, tree in state.slots.items()}
        for i, group in enumerate(self.names):
            scalars = dict(others.pop(group))
            slots = {name: part[i] for name, part in parts.items()}  # slots of other groups are masked
            states.append(State(scalars.pop(STEP), {}, scalars, slots))
        return State(state.count, {}, others, states)

    def joined(self, state: State) -> State:
        """Convert a state of `Multi` to one of the whole."""
        scalars = {name: s.scalars | {STEP: s.count} for name, s in zip(self.names, state.slots, strict=True)}
        absent = self.split(self.layout.unflatten([optax.MaskedNode()] * len(self.group)))
        names = dict.fromkeys(name for s in state.slots for name in s.slots)
        slots = {
            name: self.unpacked([s.slots.get(name, x) for s, x in zip(state.slots, absent, strict=True)])
            for name in names
        }
        return State(state.count, {}, scalars | state.scalars, slots)

    def unpacked(self, parts: list[dict[str, Any]]) -> Any:
        """Join the parts of all groups to a tree of arrays like the parameters, never packed."""
        everything = {path: x for part in parts for path, x in part.items()}
        return self.layout.unflatten([everything[path] for path in self.group])


def partition_of(program: Program) -> Partitioned | None:
    """The `Partitioned` program in a tree of programs, if there is one."""
    if isinstance(program, Partitioned):
        return program
    return next((found for child in program.children if (found := partition_of(child))), None)
