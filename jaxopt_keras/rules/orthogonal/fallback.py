"""The rule of the parameters that are no matrices: Adam, unless another is asked for."""

from typing import Any, NamedTuple

from jax import Array

from jaxopt_keras.language.modifier import with_average
from jaxopt_keras.language.rule import Amount, Clock, Decay, NonNegative, Rule, Signed, Slot
from jaxopt_keras.rules.adam import Adam
from jaxopt_keras.rules.nadam import Nadam


class AdamPart(Rule):
    """The fallback of Muon: Adam, or Nadam, at `ratio` times the rate and with its own decay."""

    nesterov: bool = False
    beta_1: Decay = 0.9
    beta_2: Decay = 0.999
    epsilon: Amount = 1e-7
    ratio: Amount = 1.0
    weight_decay: Amount | None = None

    class State(NamedTuple):
        momentum: Signed
        velocity: NonNegative

    @property
    def inner(self) -> Rule:
        adam = Nadam if self.nesterov else Adam
        return adam(variant=self.variant).bind({n: getattr(self, n) for n in ("beta_1", "beta_2", "epsilon")})

    def decoupled(self, weight_decay: Any) -> Any:
        own = self.weight_decay
        return own * self.ratio if self.variant == "optax" and own is not None else own

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        step, new = self.inner.update(g, p, self.inner.State(*s), at)
        return self.ratio * step, self.State(*new[:2])


def read_others(value: Any) -> Any:
    """Validate `others`: return a rule on arrays of any shape, or None.

    Raises:
        TypeError: for anything else. ValueError: for a rule with another rate or numbers kept once for all arrays.
    """
    if value is None:
        return None
    rule = value if isinstance(value, Rule) else getattr(value, "rule", None)  # of a kernel
    if not isinstance(rule, Rule) or type(rule).accepts is not Rule.accepts:
        raise TypeError(f"`others` must be a rule for arrays of any shape, such as `rules.Lion()`. Received: {value!r}")
    if rule.learning_rate != type(rule)().learning_rate:
        raise ValueError(
            "The rule `others` runs at `learning_rate` times `adam_lr_ratio`, and its own rate has no effect. "
            f"Received: others={rule!r}. Leave out its rate, or use `partition` for groups with rates of their own."
        )
    if rule.scalars() is not None or rule.decoupled(1.0) is None or with_average(rule) is not None:
        raise ValueError(
            "`others` must not keep numbers for all arrays in common, apply its own weight decay, nor have other "
            f"weights to evaluate than it trains. Received: {rule!r}. Use `partition` for it."
        )
    return rule


class OtherPart(Rule):
    """The fallback of Muon: `rule` at `ratio` times the rate and with its own decay."""

    rule: Any = None
    ratio: Amount = 1.0
    weight_decay: Amount | None = None

    @property
    def State(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]  # here it depends on `rule`
        return self.rule.State

    def kinds(self, p: Array) -> dict[str, Slot]:
        return self.rule.kinds(p)

    def init(self, p: Array) -> Any:
        return self.rule.init(p)

    def decoupled(self, weight_decay: Any) -> Any:
        return self.rule.decoupled(self.weight_decay)

    def update(self, g: Array, p: Array, s: Any, at: Clock) -> tuple[Array, Any]:
        step, s = self.rule.update(g, p, s, at)
        return self.ratio * step, s
