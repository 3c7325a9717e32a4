"""The state of an optimizer: what its algorithm remembers between steps."""

from typing import Any, NamedTuple


class State(NamedTuple):
    """A pytree of arrays, none of them shared, whose structure, shapes and dtypes a step does not change.

    Hyperparameters are not part of it, unless the kernel was made with `inject_hyperparams`: a `tree.map` over the
    state (a reset to zeros, a cast, an average of two) touches only what the algorithm remembers.
    """

    count: Any  # int32: the number of updates made
    hyperparams: dict[str, Any]  # injected hyperparameters by name, as optax's `inject_hyperparams` keeps them
    scalars: dict[str, Any]  # kept once for all parameters
    slots: Any  # {slot name: a tree like the parameters}; `optax.MaskedNode()` where a parameter has no such slot
