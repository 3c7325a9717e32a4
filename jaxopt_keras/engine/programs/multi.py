"""Several programs as one, each over its own tree: one call, and one decision of the guard for all of them."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp

from jaxopt_keras.engine.core import Program
from jaxopt_keras.engine.programs.frozen import Frozen
from jaxopt_keras.engine.stages import guard
from jaxopt_keras.engine.state import State
from jaxopt_keras.language.options import Options


@dataclass(frozen=True)
class Multi(Program):
    """Runs `programs` on lists of parameters, gradients and hyperparameters, with an element for each program.

    The state's `slots` is the list of the programs' states, and its `count` the greatest of their counts.
    """

    programs: tuple[Program, ...]
    skip_nonfinite: bool

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
        if self.skip_nonfinite and reduce:  # the guard decides on the sums
            grads, reduce = self.summed(params, grads), False
        empty = State(state.count, {}, {}, {})
        skipped = [Frozen().call(p, empty, g, {}, reduce, write)[0] for p, g in zip(params, grads, strict=True)]
        moving = [g for g, program in zip(grads, self.programs, strict=True) if not isinstance(program, Frozen)]

        def proceed(states: list[State], scalars: Any) -> Any:
            everything = zip(self.programs, params, states, grads, hyper, strict=True)
            ran = [program.call(p, s, g, h, reduce, write) for program, p, s, g, h in everything]
            moved = [s for _, s in ran]
            return ([out for out, _ in ran], jnp.maximum(state.count, _latest(moved))), moved, scalars

        def idle(states: list[State], scalars: Any) -> Any:
            return (skipped, state.count), states, scalars

        everything = self.options, {}, jax.tree.leaves(moving), list(state.slots), state.scalars, state.count
        (out, count), states, scalars = guard.guarded(*everything, proceed, idle)
        return out, State(count, {}, scalars, states)

    def averaged(self, params: list[Any], state: State, hyper: Any) -> list[Any]:
        everything = zip(self.programs, params, state.slots, hyper, strict=True)
        return [program.averaged(p, s, h) for program, p, s, h in everything]

    def summed(self, params: Any, grads: list[Any]) -> list[Any]:
        """Sum each program's gradients over its mapped axis."""
        return [program.summed(p, g) for program, p, g in zip(self.programs, params, grads, strict=True)]

    def offered(self, hyper: Any, loss: Any) -> Any:
        return [program.offered(h, loss) for program, h in zip(self.programs, hyper, strict=True)]

    def hyper(self) -> Any:
        return [program.hyper() for program in self.programs]

    def skeleton(self) -> Self:
        return dataclasses.replace(self, programs=tuple(program.skeleton() for program in self.programs))


def _latest(states: list[State]) -> Any:
    """Return the greatest count of `states`, in its own buffer."""
    return functools.reduce(jnp.maximum, [s.count for s in states[1:]], jnp.copy(states[0].count))
