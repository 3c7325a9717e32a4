"""The update of all parameters with a `MatrixRule`: the matrices of one shape are computed together.

Inside modifiers too. Their part is traced twice: first for the argument of `whole`, then with its result.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import Array

from jaxopt_keras.engine.core import Slots
from jaxopt_keras.engine.cores.jobs import Job
from jaxopt_keras.engine.cores.rule_state import present, state_of, traced_once
from jaxopt_keras.engine.cores.stacked import map_matrices
from jaxopt_keras.language.matrix_rule import COMPUTED, MatrixRule
from jaxopt_keras.language.modifier import innermost
from jaxopt_keras.language.rule import Rule


def update_matrices(jobs: list[Job]) -> list[tuple[Array, Slots]]:
    """Return the step and the new slots of each parameter."""
    known: dict[Any, Any] = {}
    found = [traced_once(_lead, job.skeleton, known)(*job[1:]) for job in jobs]
    views = [innermost(job.skeleton).view(u.shape) for job, (u, _) in zip(jobs, found, strict=True)]
    stacks = [seen.matrices(u) for seen, (u, _) in zip(views, found, strict=True)]
    groups: dict[Any, list[int]] = {}
    for i, (job, x) in enumerate(zip(jobs, stacks, strict=True)):
        if x.size:
            groups.setdefault((type(innermost(job.skeleton)), x.shape[1:], x.dtype), []).append(i)
    for members in groups.values():
        first = jobs[members[0]]
        whole = functools.partial(_whole, first.skeleton)
        with jax.named_scope("whole"):
            results = map_matrices(whole, first.numbers, [stacks[i] for i in members])
        for i, (x,) in zip(members, results, strict=True):
            stacks[i] = x
    return [
        traced_once(_trail, job.skeleton, known)(job.numbers, seen.restored(x), job.g, job.p, slots, job.at)
        for job, seen, x, (_, slots) in zip(jobs, views, stacks, found, strict=True)
    ]


def _lead(skeleton: Rule, numbers: Any, g: Array, p: Any, slots: Slots, at: Any) -> tuple[Array, Slots]:
    """Return the argument of `whole`, and what `_trail` takes as slots."""
    rule = skeleton.bind(numbers)
    if isinstance(rule, MatrixRule):
        u, state = rule.lead(g, p, state_of(rule, slots), at)
        return u, present(state)
    arguments: list[Array] = []
    _updated(rule, lambda u: (arguments.append(u), u)[1], g, p, slots, at)
    return arguments[0], slots


def _whole(skeleton: Rule, numbers: Any, u: Array) -> tuple[Array]:
    return (innermost(skeleton.bind(numbers)).whole(u),)


def _trail(skeleton: Rule, numbers: Any, x: Array, g: Array, p: Any, slots: Slots, at: Any) -> tuple[Array, Slots]:
    rule = skeleton.bind(numbers)
    if not isinstance(rule, MatrixRule):
        return _updated(rule, lambda _: x, g, p, slots, at)
    step, state = rule.trail(x, p, state_of(rule, slots), at)
    return step, present(state)


def _updated(
    rule: Rule, computed: Callable[[Array], Array], g: Array, p: Any, slots: Slots, at: Any
) -> tuple[Array, Slots]:
    token = COMPUTED.set(computed)
    try:
        step, state = rule.update(g, p, state_of(rule, slots), at)
    finally:
        COMPUTED.reset(token)
    return step, present(state)
