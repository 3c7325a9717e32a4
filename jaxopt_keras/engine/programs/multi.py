"""Several programs as one, each over its own tree: one call, and one decision of the guard for all of them."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp

from jaxopt_keras.engine.core import Program
from jaxopt_keras.engine.given import EMPTY, FLUSH, found, zeroed
from jaxopt_keras.engine.one_kernel import joined
from jaxopt_keras.engine.pipeline import Program as Plain
from jaxopt_keras.engine.probe import before, before_parameters
from jaxopt_keras.engine.programs.frozen import Frozen
from jaxopt_keras.engine.programs.offloaded import Offloaded
from jaxopt_keras.engine.stages import guard
from jaxopt_keras.engine.stages.accumulate import restarted, without
from jaxopt_keras.engine.stages.guard import SKIPPED
from jaxopt_keras.engine.state import State
from jaxopt_keras.language.options import Options


@dataclass(frozen=True)
class Multi(Program):
    """Runs `programs` on lists of parameters, gradients and hyperparameters, with an element for each program.

    The state's `slots` is the list of the programs' states, and its `count` the greatest of their counts.
    """

    programs: tuple[Program, ...]
    skip_nonfinite: Any  # as in `Options`

    @functools.cached_property
    def options(self) -> Options:
        """The options of the whole; each program also has its own."""
        return Options(skip_nonfinite=self.skip_nonfinite)

    @property
    def children(self) -> tuple[Program, ...]:
        return self.programs

    def init(self, params: list[Any], hyper: Any) -> State:
        states = [program.init(p, h) for program, p, h in zip(self.programs, params, hyper, strict=True)]
        return State(_latest(states), {}, guard.init(self.options), states)

    def call(self, params: list[Any], state: State, grads: list[Any], hyper: Any, reduce: bool, write: bool) -> Any:
        """Run every program, or none if the guard rejects the gradients."""
        if self.skip_nonfinite:  # the guard decides on the sums
            (grads, hyper), reduce = self.summed(params, grads, hyper, reduce), False
        empty = State(state.count, {}, {}, {})
        skipped = [Frozen().call(p, empty, g, {}, reduce, write)[0] for p, g in zip(params, grads, strict=True)]
        moving = [g for g, program in zip(grads, self.programs, strict=True) if not isinstance(program, Frozen)]

        def proceed(states: list[State], scalars: Any, kept: Any = None) -> Any:
            counted, given = grads, hyper
            if kept is not None:
                counted, given = zeroed(kept, grads), self.offered(hyper, {EMPTY: ~kept})
            everything = zip(self.programs, params, states, counted, given, strict=True)
            ran = [self._call_one(program, p, s, g, h, reduce, write) for program, p, s, g, h in everything]
            moved = [s for _, s in ran]
            return ([out for out, _ in ran], jnp.maximum(state.count, _latest(moved))), moved, scalars

        def idle(states: list[State], scalars: Any) -> Any:
            return (skipped, state.count), states, scalars

        def restart(states: list[State], scalars: Any, when: jax.Array) -> Any:
            return [s._replace(scalars=restarted(s.scalars, when)) for s in states], scalars

        def replaced(states: list[State], scalars: Any) -> Any:
            outs = [before_parameters(x, p, write) for x, p in zip(skipped, params, strict=True)]
            return (outs, before(state.count)), before(states), before(scalars)

        ends = {FLUSH: True} if found(hyper, FLUSH) is not None else {}
        everything = self.options, ends, jax.tree.leaves(moving), list(state.slots), state.scalars, state.count
        run = guard.Guarded(proceed, idle, replaced, restart)
        (out, count), states, scalars = guard.guarded(*everything, run)
        if self.skip_nonfinite and write:
            everything = zip(self.programs, out, states, grads, strict=True)
            out = [joined(p, x, s, g) if isinstance(p, Plain) else x for p, x, s, g in everything]
        return out, State(count, {}, scalars, states)

    def _call_one(self, program: Program, params: Any, state: State, *rest: Any) -> Any:
        """Call a group's program, without its own guard where there is one for all; its counter does not change."""
        if not self.skip_nonfinite:
            return program.call(params, state, *rest)
        plain = unguarded(_watched(program) if guard.looks_at_results(self.options) else program)
        kept = {} if guard.is_on(plain.options) else {n: x for n, x in state.scalars.items() if n == SKIPPED}
        out, moved = plain.call(params, state._replace(scalars=without(state.scalars, *kept)), *rest)
        return out, moved._replace(scalars=moved.scalars | kept)

    def points(self, params: Any, state: State, grads: Any, hyper: Any) -> tuple[Any, Any]:
        """Refuse: where second gradients are taken is asked of one program, by the stateful face."""
        raise TypeError(
            "A `MultiOptimizer` takes no second gradients. Received: a group that needs one. Use the pure face: "
            "`jaxopt_keras.partition`, and `kernel.minimize`."
        )

    def averaged(self, params: list[Any], state: State, hyper: Any) -> list[Any]:
        everything = zip(self.programs, params, state.slots, hyper, strict=True)
        return [program.averaged(p, s, h) for program, p, s, h in everything]

    def summed(self, params: Any, grads: list[Any], hyper: Any, reduce: bool = True) -> tuple[Any, Any]:
        """Sum each program's gradients over its mapped axis."""
        everything = zip(self.programs, params, grads, hyper, strict=True)
        totals = [program.summed(p, g, h, reduce) for program, p, g, h in everything]
        return [g for g, _ in totals], [h for _, h in totals]

    def offered(self, hyper: Any, given: dict[str, Any]) -> Any:
        return [program.offered(h, given) for program, h in zip(self.programs, hyper, strict=True)]

    def hyper(self) -> Any:
        return [program.hyper() for program in self.programs]

    def skeleton(self) -> Self:
        return dataclasses.replace(self, programs=tuple(program.skeleton() for program in self.programs))


def unguarded(program: Any) -> Any:
    """Return a group's program without its guard: one guard decides for all groups."""
    if not program.options.skip_nonfinite:
        return program
    if isinstance(program, Offloaded):
        return dataclasses.replace(program, inner=unguarded(program.inner))
    return dataclasses.replace(program, options=program.options.bind({"skip_nonfinite": False}))


def _watched(program: Any) -> Any:
    """Return a group's program whose results a guard looks at."""
    if isinstance(program, Offloaded):
        return dataclasses.replace(program, inner=_watched(program.inner))
    return program if isinstance(program, Frozen) else dataclasses.replace(program, watched=True)


def _latest(states: list[State]) -> Any:
    """Return the greatest count of `states`, in its own buffer."""
    return functools.reduce(jnp.maximum, [s.count for s in states[1:]], jnp.copy(states[0].count))
