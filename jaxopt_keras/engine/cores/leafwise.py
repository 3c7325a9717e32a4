"""The core that runs a rule on one array at a time."""

import dataclasses
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.engine.core import Core, Layout, Leaf, Now, Slots, cast
from jaxopt_keras.engine.cores.matrices import Job, update_matrices
from jaxopt_keras.engine.cores.rule_state import present, state_of, traced_once
from jaxopt_keras.language import numerics
from jaxopt_keras.language.matrix_rule import MatrixRule
from jaxopt_keras.language.numerics import Complemented, real_dtype
from jaxopt_keras.language.rule import TRACED, Rule, Slot, as_scalar, fields_of


class At(NamedTuple):
    """The clock of a rule that runs on one whole array."""

    t: Array
    lr: Any
    weight_decay: Any
    scalars: Any

    @classmethod
    def of(cls, now: Now, scalars: Any) -> "At":
        return cls(now.t, now.lr, now.weight_decay, scalars)

    def norm(self, x: Array) -> Array:
        return numerics.norm(x)

    def rms(self, x: Array) -> Array:
        return numerics.rms(x)


def route(rule: Rule, path: str, p: Any) -> Rule:
    """Return the rule that updates the parameter: `rule`, or the first of its fallbacks that accepts it."""
    while not rule.accepts(path, p):
        rule = rule.fallback
    return rule.placed(path, p)


def first_scalars(rule: Rule) -> Any:
    """Return the rule's scalars before the first update, as arrays of the default float dtype; None: no scalars."""
    dtype = jnp.result_type(float)
    start = lambda x: jnp.array(x.value if isinstance(x, Complemented) else x, dtype)  # a copy: scalars are donated
    return jax.tree.map(start, rule.scalars(), is_leaf=lambda x: isinstance(x, Complemented))


def _update(skeleton: Rule, g: Array, p: Any, slots: Slots, numbers: dict[str, Any], at: At) -> tuple[Any, Slots]:
    """Return the step and the new slots of one array."""
    rule = skeleton.bind(numbers)
    step, state = rule.update(g, p, state_of(rule, slots), at)
    return step, present(state)


def _is_hashable(rule: Rule) -> bool:
    try:
        hash(rule)
    except TypeError:
        return False
    return True


@dataclass(frozen=True)
class Leafwise(Core):
    """Runs `rule` on each parameter independently."""

    rule: Rule
    any_slots: bool = False

    def arrays(self) -> dict[str, Any]:
        return self.rule.arrays()

    def skeleton(self) -> "Leafwise":
        return dataclasses.replace(self, rule=self.rule.skeleton())

    def replaced(self, **numbers: Any) -> "Leafwise":
        return dataclasses.replace(self, rule=dataclasses.replace(self.rule, **numbers))

    @property
    def schedule(self) -> Any:
        return self.rule.learning_rate if callable(self.rule.learning_rate) else None

    @property
    def elementwise(self) -> bool:
        return self.rule.grain == "element" and type(self.rule).accepts is Rule.accepts

    def patterns(self) -> dict[str, tuple[str, ...]]:
        fields = fields_of(type(self.rule)).items()
        return {n: _patterns(getattr(self.rule, n)) for n, f in fields if f.reader is not None and f.reader.searched}

    def slot_names(self) -> tuple[str, ...]:
        rule = self.rule.skeleton()
        return (_slot_names if _is_hashable(rule) else _slot_names.__wrapped__)(rule)

    def scalar_names(self, hyper: dict[str, Any]) -> Iterable[str]:
        return present(self.rule.bind(hyper).scalars())

    def init(self, layout: Layout, params: list[Any], hyper: dict[str, Any]) -> tuple[list[Slots], Slots]:
        slots = []
        bound = {dtype: self.rule.bind(cast(hyper, dtype)) for dtype in {real_dtype(p.dtype) for p in params}}
        for leaf, p in zip(layout.leaves, params, strict=True):
            rule = route(bound[real_dtype(p.dtype)], leaf.path, p)
            if jnp.iscomplexobj(p) and not rule.complex_ok:
                raise TypeError(
                    f"{type(rule).__name__} has no complex form. Received: `{leaf.path}` of dtype {p.dtype}. "
                    "Pass the real and the imaginary part as two parameters."
                )
            slots.append(present(rule.init(p)))
        return slots, present(first_scalars(self.rule.bind(hyper)))

    def kinds(self, leaf: Leaf, p: Any) -> dict[str, Slot]:
        return route(self.rule, leaf.path, p).kinds(p)

    def decoupled(self, leaf: Leaf, p: Array, now: Now) -> Any:
        return route(self.rule.bind(now.hyper), leaf.path, p).decoupled(now.weight_decay)

    def update(
        self, layout: Layout, grads: list[Any], params: list[Any], slots: list[Slots], scalars: Slots, now: Now
    ) -> tuple[list[Any], list[Slots], Slots]:
        bound = self.rule.bind(now.hyper)
        shared = bound.scalars()
        if shared is not None:
            shared = shared._replace(**scalars)
            shared = bound.advance(shared, At.of(now, shared))
            scalars = present(shared)
        steps, new = list[Any](grads), list(slots)
        dtypes = {real_dtype(g.dtype) for g in grads if g is not None}
        clocks = {dtype: self._clock(now, shared, dtype) for dtype in dtypes}
        known: dict[Any, Any] = {}
        jobs: dict[int, Job] = {}
        for i, (leaf, g, p, s) in enumerate(zip(layout.leaves, grads, params, slots, strict=True)):
            if g is not None:
                bound, decaying, plain = clocks[real_dtype(g.dtype)]
                rule, at = route(bound, leaf.path, g), decaying if leaf.decays else plain
                skeleton = rule.skeleton()
                if isinstance(skeleton, MatrixRule):
                    jobs[i] = Job(skeleton, rule.traced(), g, p, s, at)
                    continue
                steps[i], new[i] = traced_once(_update, skeleton, known)(g, p, s, rule.traced(), at)
        for i, (step, state) in zip(jobs, update_matrices([*jobs.values()]), strict=True):
            steps[i], new[i] = step, state
        return steps, new, scalars

    def _clock(self, now: Now, shared: Any, dtype: Any) -> tuple[Rule, At, At]:
        """Return the rule with its numbers in `dtype`, and its clocks for parameters with and without weight decay."""
        local, scalars = cast(now, dtype), cast(shared, dtype)
        return self.rule.bind(local.hyper), At.of(local, scalars), At.of(local._replace(weight_decay=None), scalars)

    def averaged(self, leaf: Leaf, p: Array, slots: Slots, hyper: dict[str, Any]) -> Array:
        rule = route(self.rule.bind(cast(hyper, real_dtype(p.dtype))), leaf.path, p)
        return rule.averaged(p, state_of(rule, slots))


def _patterns(value: Any) -> tuple[str, ...]:
    """Return the patterns of a tuple of them, or of pairs of a pattern and something else; none of a function."""
    return tuple(x if isinstance(x, str) else x[0] for x in value) if isinstance(value, tuple) else ()


@functools.lru_cache(maxsize=64)
def _slot_names(rule: Rule) -> tuple[str, ...]:
    """Return the names of all slots that the rule, or one of its fallbacks, creates for some shape."""
    params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((), (2,), (256, 256))]
    rules = [route(rule, "", p) for p in params]

    def states(params: list[Any]) -> list[Any]:
        return [_with_numbers(own).init(p) for own, p in zip(rules, params, strict=True)]

    return tuple(dict.fromkeys(name for state in jax.eval_shape(states, params) for name in present(state)))


def _with_numbers(rule: Rule) -> Rule:
    """Return a skeleton with a number for each placeholder."""
    return rule.bind({n: as_scalar(f, 0.5) for n, f in fields_of(type(rule)).items() if getattr(rule, n) is TRACED})
