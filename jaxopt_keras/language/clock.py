"""The clock: what a rule reads of the step in which it runs."""

from typing import Any, Protocol

from jax import Array


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

    def norm(self, x: Array) -> Array:
        """Compute the Euclidean norm over the rule's own array."""
        ...

    def rms(self, x: Array) -> Array:
        """Compute the root mean square over the rule's own array."""
        ...
