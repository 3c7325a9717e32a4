"""Rules around rules: a modifier has a rule inside it, and changes its gradients, its rate or its steps."""

import dataclasses
from typing import Any, ClassVar, Self

from jax import Array

from jaxopt_keras.language.clock import Clock
from jaxopt_keras.language.fields import Field, fields_of
from jaxopt_keras.language.nested import Both, outer
from jaxopt_keras.language.rule import Rule, Slot, slots_of, zeros_of

GRAINS = ("element", "leaf", "matrix")


def of_inner(name: str) -> Any:
    """Return a property that is the one of the rule inside."""
    return property(lambda self: getattr(self.inner, name))


class Modifier(Rule):
    """A rule around a rule. By itself it changes nothing.

    A subclass declares its own numbers, its own `State`, and an `update` that calls `self.within` for the step of the
    rule inside. `s.own` are its own slots, which `start` makes, and `s.inner` those of the rule inside. Its own scalars
    and shares are the first part of a `Both`; `at.inside()` is the clock of the rule inside.

    The numbers, slots and scalars of the rule inside keep their names, with `inner_` before one that the modifier has
    too.

    Args:
        inner: the rule inside: an optimizer's, or another modifier.

    >>> import jax.numpy as jnp, jaxopt_keras as jk
    >>> class Clipped(Modifier):  # each element of a step is at most the rate
    ...     def update(self, g, p, s, at):
    ...         step, s = self.within(g, p, s, at)
    ...         return jnp.clip(step, -at.lr, at.lr), s
    >>> kernel = jk.Kernel(Clipped(jk.rules.SGD(0.5, momentum=0.9)))
    >>> params, state = kernel.step(jnp.zeros(2), kernel.init(jnp.zeros(2)), jnp.array([3.0, -0.25]))
    >>> params.tolist(), list(state.slots)
    ([-0.5, 0.125], ['momentum'])
    """

    needs: ClassVar[Any] = "element"  # the grain of the modifier alone
    decays: ClassVar[bool] = False  # `update` gets the parameter before its decoupled decay, which `within` applies

    inner: Rule  # pyright: ignore[reportGeneralTypeIssues]  # the fields before it are none here

    learning_rate: ClassVar[Any] = of_inner("learning_rate")
    variant: ClassVar[Any] = of_inner("variant")
    grain: ClassVar[Any] = property(lambda self: max(self.needs, self.inner.grain, key=GRAINS.index))
    complex_ok: ClassVar[Any] = of_inner("complex_ok")
    takes: ClassVar[Any] = of_inner("takes")
    defaults: ClassVar[Any] = of_inner("defaults")
    required: ClassVar[Any] = of_inner("required")

    def __post_init__(self) -> None:
        if not isinstance(self.inner, Rule):
            raise TypeError(
                f"`inner` of {type(self).__name__} must be a rule, such as `jaxopt_keras.rules.Adam()`. Received: "
                f"inner={self.inner!r}"
            )
        if "function" in self.inner.takes and hasattr(self.inner, "search"):
            raise ValueError(
                f"`inner` of {type(self).__name__} must be a rule whose steps are as long as it says. Received: "
                f"{title(self.inner)}, which searches for their length along the loss."
            )
        # A class says by `keeps_steps` that `update` returns the step of the rule inside, for another gradient or rate.
        changes = type(self).update is not Modifier.update and not getattr(type(self), "keeps_steps", False)
        if changes and (found := with_average(self.inner)) is not None:
            raise ValueError(
                f"{type(self).__name__} changes steps, and {title(found)} has other weights to evaluate (`averaged`), "
                "which go wrong where its steps are changed. Turn them around: an average is the outermost, as in "
                f"`ScheduleFree(Cautious(AdamW()))`. A modifier of yours that returns the steps of the rule inside as "
                f"they are says so: `keeps_steps = True` in its class. Received: inner={title(self.inner)}."
            )
        super().__post_init__()

    # --- its numbers, and those of the rule inside --------------------------------------------------------------------

    def _outer(self) -> dict[str, str]:
        """Return the names here of the numbers inside, by their names there."""
        own = fields_of(type(self))
        return {name: outer(name, own) for name in self.inner.declared()}

    def __getattr__(self, name: str) -> Any:
        if "inner" in vars(self) and not name.startswith("__"):
            for inside, here in self._outer().items():
                if here == name:
                    return getattr(self.inner, inside)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def declared(self) -> dict[str, Field]:
        names, inside = self._outer(), self.inner.declared()
        return fields_of(type(self)) | {names[name]: field for name, field in inside.items()}

    def bind(self, values: dict[str, Any]) -> Self:
        bound = super().bind(values)
        inside = {name: values[here] for name, here in self._outer().items() if here in values}
        object.__setattr__(bound, "inner", bound.inner.bind(inside))
        return bound

    def replaced(self, **values: Any) -> Self:
        own = {name: x for name, x in values.items() if name in fields_of(type(self))}
        inside = {name: values.pop(here) for name, here in self._outer().items() if here in values}
        changed = dataclasses.replace(self, **own | {n: x for n, x in values.items() if n not in own})
        return around(changed, changed.inner.replaced(**inside)) if inside else changed

    # --- its parts ----------------------------------------------------------------------------------------------------

    def covers(self, path: str, p: Array) -> bool:
        """Whether the modifier changes the steps of a parameter; those of others are the steps of the rule inside."""
        return True

    def slots(self) -> dict[str, Slot]:  # pyright: ignore[reportIncompatibleMethodOverride]  # depends on the instance
        return self._joined(self.inner.slots())

    def kinds(self, p: Array) -> dict[str, Slot]:
        return self._joined(self.inner.kinds(p))

    def _joined(self, inside: dict[str, Slot]) -> dict[str, Slot]:
        own = slots_of(type(self).State)
        return own | {outer(name, own): slot for name, slot in inside.items()}

    def start(self, p: Array) -> Any:
        """Return the modifier's own slots of a new parameter: zeros, unless it says otherwise."""
        return zeros_of(type(self).State, p)

    def init(self, p: Array) -> Both:
        return Both(self.start(p), self.inner.init(p))

    def within(self, g: Array, p: Array, s: Both, at: Clock) -> tuple[Array, Both]:
        """Return the step of the rule inside, and the state with its new slots."""
        decay = self.inner.decoupled(at.weight_decay) if self.decays else None
        lost = None if decay is None else at.lr * decay * p
        step, inner = self.inner.update(g, p if lost is None else p - lost, s.inner, at.inside())
        return step if lost is None else step - lost, s._replace(inner=inner)

    # --- all else is up to the rule inside ----------------------------------------------------------------------------

    def update(self, g: Array, p: Array, s: Both, at: Clock) -> tuple[Array, Both]:
        return self.within(g, p, s, at)

    def scalars(self) -> Both | None:
        inner = self.inner.scalars()
        return None if inner is None else Both(None, inner)

    def share(self, g: Array, p: Array, s: Both, at: Clock) -> Both:
        return Both(None, self.inner.share(g, p, s.inner, at.inside()))

    def advance(self, scalars: Both, at: Clock) -> Both:
        inner = scalars.inner
        return scalars if inner is None else scalars._replace(inner=self.inner.advance(inner, at.inside()))

    def decoupled(self, weight_decay: Any) -> Any:
        return None if self.decays else self.inner.decoupled(weight_decay)

    def averaged(self, p: Array, s: Both) -> Array:
        return self.inner.averaged(p, s.inner)


# --- of rules, whether or not there are modifiers around them ---------------------------------------------------------


def around(modifier: Any, inner: Rule) -> Any:
    """Return a modifier around another rule, unchecked."""
    copy = modifier.bind({})
    object.__setattr__(copy, "inner", inner)
    return copy


def routed(rule: Rule, path: str, p: Any) -> Rule:
    """Return the rule that updates a parameter: `rule`, or the first of its fallbacks that accepts it."""
    if isinstance(rule, Modifier):
        return around(rule if rule.covers(path, p) else Modifier(rule.inner), routed(rule.inner, path, p))
    return rule.placed(path, p) if rule.accepts(path, p) else routed(rule.fallback, path, p)


def innermost(rule: Rule) -> Any:
    """Return the rule inside all modifiers."""
    return innermost(rule.inner) if isinstance(rule, Modifier) else rule


def is_joint(rule: Rule) -> bool:
    """Whether a rule needs sums over all arrays."""
    return type(rule).share not in (Rule.share, Modifier.share) or (isinstance(rule, Modifier) and is_joint(rule.inner))


def with_average(rule: Rule) -> Rule | None:
    """Return the part of a rule whose weights to evaluate are not those that it trains, if there is one."""
    if type(rule).averaged not in (Rule.averaged, Modifier.averaged):
        return rule
    if isinstance(rule, Modifier):
        return with_average(rule.inner)
    return None if type(rule).accepts is Rule.accepts else with_average(rule.fallback)


def is_alike(rule: Rule) -> bool:
    """Whether a rule updates all parameters in the same way, whatever their paths and shapes."""
    if isinstance(rule, Modifier):
        return type(rule).covers is Modifier.covers and is_alike(rule.inner)
    return type(rule).accepts is Rule.accepts and type(rule).placed is Rule.placed


def title(rule: Any) -> str:
    """Return the name of a rule, with those of the rules inside it."""
    return f"{type(rule).__name__}({title(rule.inner)})" if isinstance(rule, Modifier) else type(rule).__name__


def blank(rule: Rule) -> Any:
    """Return a `State` of a rule in which every slot is absent."""
    own = type(rule).State if isinstance(rule, Modifier) else rule.State
    absent = own._make([None] * len(own._fields))
    return Both(absent, blank(rule.inner)) if isinstance(rule, Modifier) else absent
