"""The clock: what a rule reads of the step in which it runs."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from jax import Array


class Line(NamedTuple):
    """The loss along the steps of all arrays, for a rule that searches."""

    value: Array  # at the parameters, where the rate is 0
    slope: Array  # its derivative by the rate
    gradients: Any  # of all arrays
    at: Callable[[Array], tuple[Array, Array, Any]]  # the same three at a rate


class Clock(Protocol):
    """The step in which a rule runs."""

    @property
    def t(self) -> Array:
        """The number of this update, 1 at the first."""
        ...

    @property
    def lr(self) -> Array:
        """The learning rate of this update."""
        ...

    @property
    def weight_decay(self) -> Array | None:
        """The weight decay of this parameter, for a rule that applies it in `update` (see `decoupled`); None: off."""
        ...

    @property
    def scalars(self) -> Any:
        """The rule's scalars, already advanced."""
        ...

    @property
    def before(self) -> Any:
        """The rule's scalars before `advance`, those of the last step."""
        ...

    @property
    def sums(self) -> Any:
        """The sums of `share` over all arrays, in `advance`; elsewhere None."""
        ...

    @property
    def loss(self) -> Array:
        """The loss of this update, for a rule that `takes` it; under accumulation the mean of several."""
        ...

    @property
    def second(self) -> Array:
        """The second gradient of this array, for a rule that takes the loss function (`Rule.look`)."""
        ...

    @property
    def key(self) -> Array:
        """A random key of this array and update (`jax.random`), for a rule that `takes` it."""
        ...

    def inside(self) -> "Clock":
        """Return the clock of the rule inside a modifier."""
        ...

    def at_rate(self, lr: Any) -> "Clock":
        """Return this clock with another rate, for the rule inside a modifier."""
        ...

    def without_decay(self) -> "Clock":
        """Return this clock without weight decay, for the rule inside a modifier that has none."""
        ...

    def norm(self, x: Array) -> Array:
        """Compute the Euclidean norm over the rule's own array."""
        ...

    def rms(self, x: Array) -> Array:
        """Compute the root mean square over the rule's own array."""
        ...

    def sum(self, x: Array) -> Array:
        """Compute the sum over the rule's own array."""
        ...

    def mean(self, x: Array) -> Array:
        """Compute the mean over the rule's own array, 0 if it is empty."""
        ...
