"""The state of an optimizer between steps."""

from typing import Any, NamedTuple


class State(NamedTuple):
    """A pytree of arrays. A step does not change its structure, shapes and dtypes; no two arrays share a buffer.

    Hyperparameters are not part of it, unless the kernel was made with `inject_hyperparams`: a `tree.map` over the
    state (a reset to zeros, a cast, an average of two) changes only the algorithm's own arrays.
    """

    count: Any  # int32: the number of updates made
    hyperparams: dict[str, Any]  # injected hyperparameters by name, as in optax's `inject_hyperparams`
    scalars: dict[str, Any]  # numbers kept once for all parameters
    slots: Any  # {slot name: a tree like the parameters}; `optax.MaskedNode()` where a parameter lacks the slot
