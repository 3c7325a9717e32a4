"""The core that runs a rule on one array at a time."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.engine.core import Core, Layout, Leaf, Now, Slots, cast
from jaxopt_keras.engine.cores.at import At as At
from jaxopt_keras.engine.cores.jobs import Job, on_any_mesh
from jaxopt_keras.engine.cores.matrices import update_matrices
from jaxopt_keras.engine.cores.rule_state import present, state_of, traced_once
from jaxopt_keras.engine.cores.takes_function import TakesFunction
from jaxopt_keras.engine.cores.together import update_together
from jaxopt_keras.language.fields import is_function
from jaxopt_keras.language.hyperparameters import scheduled_at, schedules_of
from jaxopt_keras.language.matrix_rule import MatrixRule
from jaxopt_keras.language.modifier import innermost, is_alike, is_joint, routed
from jaxopt_keras.language.nested import filled
from jaxopt_keras.language.numerics import Complemented, real_dtype
from jaxopt_keras.language.rule import TRACED, Rule, Slot, as_scalar
from jaxopt_keras.storage import hash_rng

LOSS_TAKEN, KEY = "loss", "key"  # what a rule may take besides gradients


def first_scalars(rule: Rule) -> Any:
    """Return the rule's scalars before the first update, as arrays of the default float dtype; None: no scalars."""
    dtype = jnp.result_type(float)
    start = lambda x: jnp.array(x.value if isinstance(x, Complemented) else x, dtype)  # a copy: scalars are donated
    return jax.tree.map(start, rule.scalars(), is_leaf=lambda x: isinstance(x, Complemented))


def _update(skeleton: Rule, numbers: dict[str, Any], g: Array, p: Any, slots: Slots, at: At) -> tuple[Any, Slots]:
    """Return the step and the new slots of one array."""
    rule = skeleton.bind(numbers)
    step, state = rule.update(g, p, state_of(rule, slots), at)
    return step, present(state)


_update_together = functools.partial(update_together, _update)


def _share(skeleton: Rule, numbers: dict[str, Any], g: Array, p: Any, slots: Slots, at: At) -> Any:
    """Return the share of one array in the sums over all arrays."""
    rule = skeleton.bind(numbers)
    return rule.share(g, p, state_of(rule, slots), at)


def _is_hashable(rule: Rule) -> bool:
    try:
        hash(rule)
    except TypeError:
        return False
    return True


@dataclass(frozen=True)
class Leafwise(TakesFunction, Core):
    """Runs `rule` on each parameter independently."""

    rule: Rule
    any_slots: bool = False
    seed: int = 0  # of random keys
    own_counts: bool = False  # each array has a time of its own, `Now.own`

    @property
    def needs_loss(self) -> bool:  # type: ignore[override]  # an attribute of the base class
        return LOSS_TAKEN in self.rule.takes

    @property
    def joint(self) -> bool:  # type: ignore[override]  # likewise
        return is_joint(self.rule)

    def arrays(self) -> dict[str, Any]:
        return self.rule.arrays()

    def skeleton(self) -> "Leafwise":
        return dataclasses.replace(self, rule=self.rule.skeleton())

    def replaced(self, **numbers: Any) -> "Leafwise":
        return dataclasses.replace(self, rule=self.rule.replaced(**numbers))

    def schedules(self) -> dict[str, Any]:
        return schedules_of(self.rule)

    def scheduled(self, step: Any) -> dict[str, Any]:
        return scheduled_at(self.rule, step)

    @property
    def elementwise(self) -> bool:
        alike = is_alike(self.rule) and KEY not in self.rule.takes and not self.own_counts
        return self.rule.grain == "element" and alike

    def is_elementwise(self, leaf: Leaf, p: Any) -> bool:
        return routed(self.rule, leaf.path, p).grain == "element"

    def patterns(self) -> dict[str, tuple[str, ...]]:
        fields = self.rule.declared().items()
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
            rule = routed(bound[real_dtype(p.dtype)], leaf.path, p)
            if jnp.iscomplexobj(p) and not rule.complex_ok:
                raise TypeError(
                    f"{type(rule).__name__} has no complex form. Received: `{leaf.path}` of dtype {p.dtype}. "
                    "Pass the real and the imaginary part as two parameters."
                )
            slots.append(present(rule.init(p)))
        return slots, present(first_scalars(self.rule.bind(hyper)))

    def kind(self, leaf: Leaf, p: Any) -> Any:
        """Return what decides about the first slots of a parameter besides its type and place."""
        rule = routed(self.rule, leaf.path, p).skeleton()
        return rule if _is_hashable(rule) else leaf.path

    def kinds(self, leaf: Leaf, p: Any) -> dict[str, Slot]:
        return routed(self.rule, leaf.path, p).kinds(p)

    def overlooked(self, layout: Layout, params: list[Any]) -> str:
        if not isinstance(rule := innermost(self.rule), MatrixRule):
            return ""
        found = [(leaf.path, p) for leaf, p in zip(layout.leaves, params, strict=True) if rule.overlooks(leaf.path, p)]
        if not found:
            return ""
        path, name = found[0][0], type(rule).__name__
        those = ", ".join(f"`{path}` {tuple(p.shape)}" for path, p in found)
        return (
            f"{name} sees no matrices in the arrays of more than two axes, and {type(rule.fallback).__name__} updates "
            f"{those}. Say which axes are rows and columns, such as matrices={{{path!r}: 'batch... rows columns'}}, or "
            f"{{{path!r}: None}} to leave them so"
        )

    def stacks(self, leaf: Leaf, p: Any) -> bool:
        return isinstance(innermost(routed(self.rule, leaf.path, p)), MatrixRule)

    def decoupled(self, leaf: Leaf, p: Array, now: Now) -> Any:
        return routed(self.rule.bind(now.hyper), leaf.path, p).decoupled(now.weight_decay)

    def update(
        self, layout: Layout, grads: list[Any], params: list[Any], slots: list[Slots], scalars: Slots, now: Now
    ) -> tuple[list[Any], list[Slots], Slots]:
        everything = enumerate(zip(layout.leaves, grads, params, slots, strict=True))
        arrays = [(i, *x) for i, x in everything if x[1] is not None]
        before = shared = self.rule.bind(now.hyper).scalars()
        if shared is not None:
            before = filled(shared, scalars)
            shared = self._advanced(arrays, before, now)
            scalars = present(shared)
        steps, new = list[Any](grads), list(slots)
        known: dict[Any, Any] = {}
        together: dict[Any, dict[int, Job]] = {update_matrices: {}, _update_together: {}}
        for i, job in self._jobs(arrays, now, shared, before):
            if isinstance(innermost(job.skeleton), MatrixRule):
                together[update_matrices][i] = job
            elif job.skeleton.grain == "matrix":
                together[_update_together][i] = job
            else:
                steps[i], new[i] = traced_once(_update, job.skeleton, known)(*job[1:])
        for run, jobs in together.items():
            for i, (step, state) in zip(jobs, on_any_mesh(run, [*jobs.values()]), strict=True):
                steps[i], new[i] = step, state
        if self.searches and arrays:
            return steps, new, present(self.search_along(arrays, params, steps, new, shared, before, now))
        return steps, new, scalars

    def _advanced(self, arrays: list[Any], before: Any, now: Now) -> Any:
        """Return the scalars of this step from those of the last one, and from the sums over all arrays."""
        rule, sums = self.rule.bind(now.hyper), None
        if is_joint(rule) and (sums := self._sums(_share, arrays, before, now)) is None:
            return before  # no array, so no sums
        return rule.advance(before, At.of(now, before, before, sums))

    def _sums(self, function: Any, arrays: list[Any], before: Any, now: Now) -> Any:
        """Return the sums over all arrays of what `function` returns of each; None if there are none."""
        known: dict[Any, Any] = {}
        jobs = [job for _, job in self._jobs(arrays, now, before, before)]
        found = [cast(traced_once(function, job.skeleton, known)(*job[1:]), now.t.dtype) for job in jobs]
        shares = [x for x in found if x is not None]
        return jax.tree.map(lambda *x: sum(x), *shares) if shares else None

    def _jobs(self, arrays: list[Any], now: Now, shared: Any, before: Any) -> Iterator[tuple[int, Job]]:
        """Yield the index of each array, and its update: the rule for it, its numbers and its clock."""
        dtypes = {real_dtype(g.dtype) for _, _, g, *_ in arrays}
        clocks = {dtype: self._clock(now, shared, before, dtype) for dtype in dtypes}
        for i, leaf, g, p, s in arrays:
            bound, decaying, plain = clocks[real_dtype(g.dtype)]
            rule, at = routed(bound, leaf.path, g), decaying if leaf.decays else plain
            if now.own is not None:
                at = at._replace(t=now.own[i].astype(at.t.dtype))
            if now.second is not None and not callable(now.second):
                at = at._replace(second=now.second[i])
            if KEY in rule.takes:
                count = now.t if now.own is None else now.own[i]
                drawn = hash_rng.seeds(self.seed, [f"{leaf.path}/random"], count - 1)
                at = at._replace(key=jax.random.key(drawn[0]))
            yield i, Job(rule.skeleton(), rule.traced(), g, p, s, at)

    def _clock(self, now: Now, shared: Any, before: Any, dtype: Any) -> tuple[Rule, At, At]:
        """Return the rule with its numbers in `dtype`, and its clocks for parameters with and without weight decay."""
        local, *scalars = cast((now._replace(second=None), shared, before), dtype)
        at = At.of(local, *scalars)
        return self.rule.bind(local.hyper), at, at._replace(weight_decay=None)

    def averaged(self, leaf: Leaf, p: Array, slots: Slots, hyper: dict[str, Any]) -> Array:
        rule = routed(self.rule.bind(cast(hyper, real_dtype(p.dtype))), leaf.path, p)
        return rule.averaged(p, state_of(rule, slots))


def _patterns(value: Any) -> tuple[str, ...]:
    """Return the patterns of a tuple of them, or of pairs of a pattern and something else; none of a function."""
    return tuple(x if isinstance(x, str) else x[0] for x in value) if isinstance(value, tuple) else ()


@functools.lru_cache(maxsize=64)
def _slot_names(rule: Rule) -> tuple[str, ...]:
    """Return the names of all slots that the rule, or one of its fallbacks, creates for some shape."""
    params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in innermost(rule).shapes]
    rules = [routed(rule, "", p) for p in params]

    def states(params: list[Any]) -> list[Any]:
        return [_with_numbers(own).init(p) for own, p in zip(rules, params, strict=True)]

    return tuple(dict.fromkeys(name for state in jax.eval_shape(states, params) for name in present(state)))


def _with_numbers(rule: Rule) -> Rule:
    """Return a skeleton with a number for each placeholder and each function of the step."""
    absent = lambda name, field: getattr(rule, name) is TRACED or is_function(field, getattr(rule, name))
    return rule.bind({n: as_scalar(f, 0.5) for n, f in rule.declared().items() if absent(n, f)})
