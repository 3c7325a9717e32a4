"""The reference path: a rule on one array at a time."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.engine.core import Layout, Leaf, Now, Slots
from jaxopt_keras.engine.cores.stacked import spread
from jaxopt_keras.language import numerics
from jaxopt_keras.language.numerics import Complemented
from jaxopt_keras.language.rule import Rule, Slot


class At:
    """The clock of a rule that runs on one whole array."""

    def __init__(self, now: Now, scalars: Any) -> None:
        self.t, self.lr, self.weight_decay, self.scalars = now.t, now.lr, now.weight_decay, scalars

    def norm(self, x: Array) -> Array:
        return numerics.norm(x)

    def rms(self, x: Array) -> Array:
        return numerics.rms(x)


def route(rule: Rule, path: str, p: Any) -> Rule:
    """The rule that takes the parameter: `rule` itself, or the first of its fallbacks that accepts it."""
    while not rule.accepts(path, p):
        rule = rule.fallback
    return rule


def present(state: Any) -> Slots:
    """The slots that are there, by name; of None, nothing."""
    return {} if state is None else {name: x for name, x in state._asdict().items() if x is not None}


def first_scalars(rule: Rule) -> Any:
    """The rule's scalars before the first update, as arrays of the default float dtype; None where there are none."""
    dtype = jnp.result_type(float)
    start = lambda x: jnp.array(x.value if isinstance(x, Complemented) else x, dtype)  # a copy: scalars are donated
    return jax.tree.map(start, rule.scalars(), is_leaf=lambda x: isinstance(x, Complemented))


@dataclass(frozen=True)
class Leafwise:
    """Runs `rule` on each parameter by itself."""

    whole: ClassVar[bool] = False
    takes_rows: ClassVar[bool] = False

    rule: Rule

    def arrays(self) -> dict[str, Any]:
        return self.rule.arrays()

    def skeleton(self) -> "Leafwise":
        return Leafwise(self.rule.skeleton())

    @property
    def schedule(self) -> Any:
        return self.rule.learning_rate if callable(self.rule.learning_rate) else None

    @property
    def elementwise(self) -> bool:
        return self.rule.grain == "element" and type(self.rule).accepts is Rule.accepts

    def init(self, layout: Layout, params: list[Any], hyper: dict[str, Any]) -> tuple[list[Slots], Slots]:
        slots = []
        for leaf, p in zip(layout.leaves, params, strict=True):
            values = jax.tree.map(lambda x, like=p: x.astype(like.real.dtype), hyper)
            rule = route(self.rule.bind(values), leaf.path, p)
            if jnp.iscomplexobj(p) and not rule.complex_ok:
                raise TypeError(
                    f"{type(rule).__name__} has no complex form. Received: `{leaf.path}` of dtype {p.dtype}. "
                    "Give it the real and the imaginary part as two parameters."
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
            shared = bound.advance(shared, At(now, shared))
            scalars = present(shared)
        steps, new = list[Any](grads), list(slots)
        matrices: dict[Any, list[Any]] = {}  # that wait for the others of their kind
        for i, (leaf, g, p, s) in enumerate(zip(layout.leaves, grads, params, slots, strict=True)):
            if g is not None:
                local = now.cast(g.real.dtype)
                rule = route(self.rule.bind(local.hyper), leaf.path, g)
                if not leaf.decays:
                    local = local._replace(weight_decay=None)
                at = At(local, jax.tree.map(lambda x, dtype=g.real.dtype: x.astype(dtype), shared))
                state = rule.State(**{name: s.get(name) for name in rule.State._fields})
                if rule.whole is None:
                    steps[i], state = rule.update(g, p, state, at)
                else:
                    u, state = rule.lead(g, p, state, at)
                    matrices.setdefault((type(rule), u.shape, u.dtype), []).append((i, u, rule, at))
                new[i] = present(state)
        for group in matrices.values():
            places, us, rules, clocks = zip(*group, strict=True)
            for i, x, at in zip(places, spread(rules[0].whole, list(us)), clocks, strict=True):
                steps[i] = -at.lr * x
        return steps, new, scalars

    def averaged(self, leaf: Leaf, p: Array, slots: Slots, hyper: dict[str, Any]) -> Array:
        values = jax.tree.map(lambda x: x.astype(p.real.dtype), hyper)
        rule = route(self.rule.bind(values), leaf.path, p)
        return rule.averaged(p, rule.State(**{name: slots.get(name) for name in rule.State._fields}))
