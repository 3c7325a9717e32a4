"""The part of the core of rules that calls the loss function: a second gradient, or a search along the steps."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.engine.core import Layout, Now, Slots, cast
from jaxopt_keras.engine.cores.at import At
from jaxopt_keras.engine.cores.rule_state import present, state_of, traced_once
from jaxopt_keras.language.clock import Line
from jaxopt_keras.language.nested import filled
from jaxopt_keras.language.rule import Rule
from jaxopt_keras.language.second import is_searching, looking


def _inside(skeleton: Rule, numbers: dict[str, Any], slots: Slots, at: At) -> tuple[Any, Any, At]:
    """Return the rule or modifier that takes the second gradient, its state and its clock; None: there is none."""
    rule = skeleton.bind(numbers)
    found, depth = looking(rule)
    state, sums = state_of(rule, slots), at.sums
    at = at._replace(sums=None)
    for _ in range(depth):
        state, at = state.inner, at.inside()
    return found, state, at._replace(sums=sums)


def _reach(skeleton: Rule, numbers: dict[str, Any], g: Array, p: Any, slots: Slots, at: At) -> Any:
    found, state, at = _inside(skeleton, numbers, slots, at)
    return None if found is None else found.reach(g, p, state, at)


def _look(skeleton: Rule, numbers: dict[str, Any], g: Array, p: Any, slots: Slots, at: At) -> Array:
    found, state, at = _inside(skeleton, numbers, slots, at)
    return p if found is None else found.look(g, p, state, at)


def _seen(skeleton: Rule, numbers: dict[str, Any], g: Array, p: Any, slots: Slots, at: At) -> Array:
    found, state, at = _inside(skeleton, numbers, slots, at)
    return g if found is None else found.seen(g, p, state, at)


class TakesFunction:
    """Methods of the core of a rule. `_jobs` and `_sums` are those of the core."""

    rule: Rule
    _jobs: Any
    _sums: Any

    @property
    def needs_function(self) -> bool:
        return "function" in self.rule.takes

    @property
    def searches(self) -> bool:
        return is_searching(self.rule)

    def look(self, *everything: Any) -> tuple[list[Any], Any]:
        """Return where the second gradients are taken (None without gradient), and whether this update needs them.

        The arguments are those of `update`, here and in `seen`.
        """
        arrays, before, now = self._before(*everything)
        sums, points = self._sums(_reach, arrays, before, now), list[Any](everything[1])
        known: dict[Any, Any] = {}
        for i, job in self._jobs(arrays, now, before, before):
            at = job.at._replace(sums=cast(sums, job.at.t.dtype))
            points[i] = traced_once(_look, job.skeleton, known)(*job[1:-1], at)
        found, depth = looking(self.rule.bind(now.hyper))
        at = At.of(now, before, before)
        for _ in range(depth):
            at = at.inside()
        return points, found is None or found.looks(at)

    def seen(self, *everything: Any) -> list[Any]:
        """Return the gradients of the update, from those at the parameters and from the second ones."""
        arrays, before, now = self._before(*everything)
        seen, known = list[Any](everything[1]), dict[Any, Any]()
        for i, job in self._jobs(arrays, now, before, before):
            seen[i] = traced_once(_seen, job.skeleton, known)(*job[1:])
        return seen

    def _before(
        self, layout: Layout, grads: list[Any], params: list[Any], slots: list[Slots], scalars: Slots, now: Now
    ) -> tuple[list[Any], Any, Now]:
        """Return the arrays with a gradient, the scalars of the last step and the time, for what precedes an update."""
        everything = enumerate(zip(layout.leaves, grads, params, slots, strict=True))
        before = self.rule.bind(now.hyper).scalars()
        before = None if before is None else filled(before, scalars)
        return [(i, *x) for i, x in everything if x[1] is not None], before, now

    def search_along(
        self, arrays: list[Any], params: Any, steps: Any, slots: Any, shared: Any, before: Any, now: Now
    ) -> Any:
        """Search along the steps of all arrays, and replace steps and slots by those of the point that was found.

        Returns:
            The scalars.
        """
        rule: Any = self.rule.bind(now.hyper)
        moving, dtype = [i for i, *_ in arrays], now.t.dtype

        def along(grads: Any) -> Array:
            return sum((jnp.sum(grads[i] * steps[i]).astype(dtype) for i in moving), jnp.zeros((), dtype))

        def at(rate: Array) -> Any:
            points = [None] * len(steps)
            for i in moving:
                points[i] = params[i] + rate.astype(steps[i].dtype) * steps[i]
            value, grads = now.second(points)
            return value.astype(dtype), along(grads), {i: grads[i] for i in moving}

        start = {i: g for i, _, g, *_ in arrays}
        line = Line(now.loss.astype(dtype), along(start), start, at)
        shared, grads = rule.search(line, shared, At.of(now, shared, before))
        for i, job in self._jobs(arrays, now._replace(second=None), shared, before):
            one = job.skeleton.bind(job.numbers)
            step, state = one.searched(steps[i], state_of(one, slots[i]), job.at._replace(second=grads[i]))
            steps[i], slots[i] = step, present(state)
        return shared
