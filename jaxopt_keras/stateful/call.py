"""A prepared step of a stateful optimizer, and what it may be given besides gradients."""

from typing import Any, NamedTuple

from jaxopt_keras.engine.given import EMPTY, FLUSH, LOSS, WEIGHT, refuse_unused
from jaxopt_keras.pure.extra import plain_options
from jaxopt_keras.pure.kernel import Kernel
from jaxopt_keras.stateful.variable import as_array, value_of

NAMES = {"loss": LOSS, "weight": WEIGHT, "flush": FLUSH}
ENDING = {FLUSH: True, EMPTY: True}
"""What a call is given that only ends a window."""


class Call(NamedTuple):
    """A prepared step: the kernel and its arguments."""

    kernel: Kernel
    params: Any
    state: Any  # with slots of `params` only, and without hyperparameters
    grads: Any
    hyper: Any
    inner: Any = None  # of a wrapper: the calls of its inner optimizers, by their numbers

    def given(self, given: dict[str, Any]) -> "Call":
        """Return the call with what it was given, by the names of `engine.given`.

        Raises:
            TypeError: if a weight or a flush would have no effect, or a value is of another type.
        """
        if not given:
            return self
        refuse_unused(plain_options(self.kernel.program), given)
        return self._replace(hyper=self.kernel.program.offered(self.hyper, given))


def given_of(**values: Any) -> dict[str, Any]:
    """Return what a call was given, from arguments of the stateful face; None: nothing.

    Raises:
        TypeError: if the loss is not numeric.
    """
    given = {NAMES[name]: value_of(x) for name, x in values.items() if x is not None}
    return given | ({LOSS: as_array(given[LOSS], "loss")} if LOSS in given else {})
