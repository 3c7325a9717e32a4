"""Several programs, each over its own part of the parameters, as one program.

state.step       the greatest number of updates that any group has made
state.hyper      {group: its run-time hyperparameters}
state.scalars    {group: its scalars, and its `step`}, and the guard's counter
state.slots      mirrors the parameters, whatever the groups are
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxopt_keras.engine.core import Layout
from jaxopt_keras.engine.pipeline import State
from jaxopt_keras.engine.still import Still
from jaxopt_keras.options import Options
from jaxopt_keras.packed import Packed
from jaxopt_keras.transforms import guard

STEP = "step"


class Group(NamedTuple):
    """A name, and the program of its parameters."""

    name: str
    program: Any


class Part(NamedTuple):
    """What one group has of a call."""

    params: dict[str, Any]
    state: State
    grads: dict[str, Any]
    hyper: dict[str, Any]


@dataclass(frozen=True)
class Partitioned:
    """Runs every group's program on the parameters that `router` gives to it.

    `router(paths)` returns the name of each path's group. With `skip_nonfinite` one decision is taken for all groups.
    """

    groups: tuple[Group, ...]
    router: Any
    skip_nonfinite: bool = False

    @property
    def options(self) -> Options:
        """Of the whole: each group has its own besides."""
        return Options(skip_nonfinite=self.skip_nonfinite)

    def init(self, params: Any, hyper: dict[str, Any]) -> State:
        layout, routed = self.routed(params)
        params = cut(params)
        parts = self._split(routed, _by_path(layout, params))
        state = self._joined(layout, {g.name: g.program.init(parts[g.name], hyper[g.name]) for g in self.groups})
        scalars: dict[str, Any] = dict(state.scalars)
        guard.init(self.options, scalars)
        return state._replace(hyper=hyper, scalars=scalars)

    def step(self, params: Any, state: State, grads: Any, hyper: dict[str, Any], reduce: bool = True) -> Any:
        if isinstance(params, Packed):
            new, state = self.step(params.unpack(), state, cut(grads), hyper, reduce)
            return params.like(new), state

        def run(program: Any, part: Part, reduce: bool) -> Any:
            return program.step(*part, reduce=reduce)

        return self._call(params, state, grads, hyper, reduce, run, params)

    def update(self, grads: Any, state: State, params: Any, hyper: dict[str, Any], reduce: bool = True) -> Any:
        if isinstance(grads, Packed):
            deltas, state = self.update(grads.unpack(), state, cut(params), hyper, reduce)
            return grads.like(deltas), state
        like = grads if params is None else params

        def run(program: Any, part: Part, reduce: bool) -> Any:
            return program.update(part.grads, part.state, None if params is None else part.params, part.hyper, reduce)

        return self._call(like, state, grads, hyper, reduce, run, Still().update(grads, state, like, {})[0])

    def averaged(self, params: Any, state: State, hyper: dict[str, Any]) -> Any:
        if isinstance(params, Packed):
            return params.like(self.averaged(params.unpack(), state, hyper))
        layout, routed = self.routed(params)
        parts = self._parts(layout, routed, params, state, params, hyper)
        out = [g.program.averaged(p.params, p.state, p.hyper) for g, p in zip(self.groups, parts, strict=True)]
        return _whole(layout, out)

    def summed(self, params: Any, grads: Any) -> Any:
        """`grads`, each summed over its group's mapped axis."""
        params, grads = cut(params), cut(grads)
        layout, routed = self.routed(grads if params is None else params)
        of = self._split(routed, _by_path(layout, grads))
        like = of if params is None else self._split(routed, _by_path(layout, params))
        return _whole(layout, [g.program.summed(like[g.name], of[g.name]) for g in self.groups])

    def routed(self, params: Any) -> tuple[Layout, dict[str, str]]:
        """The layout of `params`, and the group of each path.

        Raises:
            ValueError: if two parameters have the same path.
        """
        layout, _ = Layout.read(cut(params), Options())
        paths = [leaf.path for leaf in layout.leaves]
        if len(set(paths)) < len(paths):
            twice = next(path for path in paths if paths.count(path) > 1)
            raise ValueError(f"A partition tells parameters apart by their paths. Received: `{twice}` twice")
        return layout, dict(zip(paths, self.router(tuple(paths)), strict=True))

    def _call(
        self, params: Any, state: State, grads: Any, hyper: Any, reduce: bool, run: Callable[..., Any], nothing: Any
    ) -> tuple[Any, State]:
        """Every group's `run(program, part, reduce)`, unless the guard says no: then `nothing`."""
        layout, routed = self.routed(params)
        if self.skip_nonfinite and reduce:  # the decision is on the sums
            grads, reduce = self.summed(params, grads), False
        still = {g.name for g in self.groups if isinstance(g.program, Still)}
        watched = [g for path, g in _by_path(layout, grads).items() if routed[path] not in still]

        def proceed(slots: Any, scalars: Any) -> Any:
            given = State(state.step, {}, scalars, slots)
            parts = self._parts(layout, routed, params, given, grads, hyper)
            ran = {g.name: run(g.program, part, reduce) for g, part in zip(self.groups, parts, strict=True)}
            joined = self._joined(layout, {name: moved for name, (_, moved) in ran.items()})
            return (_whole(layout, [out for out, _ in ran.values()]), joined.step), joined.slots, joined.scalars

        def idle(slots: Any, scalars: Any) -> Any:
            return (nothing, state.step), slots, scalars

        everything = self.options, {}, watched, state.slots, state.scalars, state.step
        (out, step), slots, scalars = guard.guarded(*everything, proceed, idle)
        return out, State(step, {}, scalars, slots)

    def _parts(
        self, layout: Layout, routed: dict[str, str], params: Any, state: State, grads: Any, hyper: dict[str, Any]
    ) -> list[Part]:
        ps, ss, gs = (self._split(routed, _by_path(layout, tree)) for tree in (params, state.slots, grads))
        parts = []
        for name, _ in self.groups:
            scalars = dict(state.scalars[name])
            own = State(scalars.pop(STEP), {}, scalars, ss[name])
            parts.append(Part(ps[name], own, gs[name], hyper[name]))
        return parts

    def _joined(self, layout: Layout, states: dict[str, State]) -> State:
        steps = [s.step for s in states.values()]
        step = functools.reduce(jnp.maximum, steps[1:], jnp.copy(steps[0]))
        scalars = {name: s.scalars | {STEP: s.step} for name, s in states.items()}
        return State(step, {}, scalars, _whole(layout, [s.slots for s in states.values()]))

    def _split(self, routed: dict[str, str], by_path: dict[str, Any]) -> dict[str, dict[str, Any]]:
        return {name: {k: x for k, x in by_path.items() if routed[k] == name} for name, _ in self.groups}


def _by_path(layout: Layout, tree: Any) -> dict[str, Any]:
    values = layout.flatten(tree, "grads, params or state")
    return {leaf.path: x for leaf, x in zip(layout.leaves, values, strict=True)}


def _whole(layout: Layout, parts: list[dict[str, Any]]) -> Any:
    """The tree of what groups have by path."""
    everything = functools.reduce(dict.__or__, parts, {})
    return layout.unflatten([everything[leaf.path] for leaf in layout.leaves])


def cut(tree: Any) -> Any:
    """The tree of a packed one."""
    return tree.unpack() if isinstance(tree, Packed) else tree
