"""The state of an optimizer between steps."""

from typing import Any, NamedTuple

import optax

from jaxopt_keras.language.other_names import STATE_FIELDS, no_attribute


class State(NamedTuple):
    """A pytree of arrays. A step does not change its structure, shapes and dtypes; no two arrays share a buffer.

    Hyperparameters are not part of it, unless the kernel was made with `inject_hyperparams`: a `tree.map` over the
    state (a reset to zeros, a cast, an average of two) changes only the algorithm's own arrays.

    Attributes:
        count: int32, the number of updates made.
        hyperparams: injected hyperparameters by name, as in optax's `inject_hyperparams`; else empty.
        scalars: numbers kept once for all parameters, such as a loss scale; with groups, a dict for each.
        slots: a tree like the parameters for each slot, by its name; `optax.MaskedNode()` where a parameter lacks it.
    """

    count: Any
    hyperparams: dict[str, Any]
    scalars: dict[str, Any]
    slots: Any

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name, STATE_FIELDS)


def is_absent(slot: Any) -> bool:
    """Whether an entry of a state's tree marks an absent slot, or belongs to a None among the parameters."""
    return slot is None or isinstance(slot, optax.MaskedNode)
