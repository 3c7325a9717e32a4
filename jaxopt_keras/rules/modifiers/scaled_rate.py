"""A multiple of the rate for some parameters."""

from typing import Annotated, Any, ClassVar

from jax import Array

from jaxopt_keras.language.clock import Clock
from jaxopt_keras.language.fields import Amount, Read
from jaxopt_keras.language.modifier import Modifier
from jaxopt_keras.language.nested import Both
from jaxopt_keras.language.option_values import patterns
from jaxopt_keras.language.paths import first_match


def _read_pattern(value: Any) -> tuple[str, ...]:
    return patterns("pattern", (value,) if isinstance(value, str) else value or ())


class ScaledRate(Modifier):
    """A rate multiplied by a factor for the parameters of some paths, around any rule.

        lr <- factor lr                         where `pattern` is found in the path
        p <- p + u                              u: the step of the rule inside at this rate

    Decoupled weight decay is scaled with the rate. Several of them, around each other, give each layer a rate of its
    own: for muP, or for the head of a trained body.

    Args:
        pattern: a regular expression, or several, searched for in the paths of parameters.
        factor: the factor of the rate.
    """

    keeps_steps: ClassVar = True

    pattern: Annotated[Any, Read(_read_pattern, searched=True)] = ()
    factor: Amount = 1.0

    def covers(self, path: str, p: Array) -> bool:
        return first_match(self.pattern, path) is not None

    def decoupled(self, weight_decay: Any) -> Any:
        decay = self.inner.decoupled(weight_decay)
        return None if decay is None else decay * self.factor

    def update(self, g: Array, p: Array, s: Both, at: Clock) -> tuple[Array, Both]:
        return self.within(g, p, s, at.at_rate(at.lr * self.factor))
