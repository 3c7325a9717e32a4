"""A prepared step of a stateful optimizer, and what it may be given besides gradients."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxopt_keras.engine import second
from jaxopt_keras.engine.given import EMPTY, FLUSH, FUNCTION, LOSS, WEIGHT, refuse_unused
from jaxopt_keras.pure.extra import plain_options
from jaxopt_keras.pure.kernel import Kernel
from jaxopt_keras.stateful.variable import as_array, value_of

NAMES = {"loss": LOSS, "weight": WEIGHT, "flush": FLUSH, "second": FUNCTION}
UNUSED = (0.0,)  # the argument of a loss without arguments that is compiled nevertheless
ENDING = {FLUSH: True, EMPTY: True}
"""What a call is given that only ends a window."""


@dataclasses.dataclass(frozen=True, eq=False)
class Along:
    """A loss over variables, to be evaluated inside the step that searches along it."""

    traced: Any  # `traced_loss.Traced`, of `variables`
    variables: list[Any]
    keys: dict[int, str]  # the paths of the optimizer's variables by their identities

    def function(self) -> Partial:
        """Return it as the engine takes a loss function. The other variables that it reads are arguments."""
        if any(id(v) not in self.keys for v in self.variables):
            raise TypeError("A search along the loss takes no packed variables. Received: some. Pass them unpacked.")
        paths = tuple(self.keys[id(v)] for v in self.variables)
        return Partial(_OfVariables(self.traced, paths), [v.value for v in self.traced.others])


class _OfVariables(NamedTuple):
    """A loss over variables as a static part of a program, equal to itself only."""

    traced: Any
    paths: tuple[str, ...]

    def __call__(self, others: list[Any], floats: list[Any], unflatten: Any, flatten: Any) -> Any:
        params = unflatten(floats)
        (value, grads), _ = self.traced._pure([params[path] for path in self.paths], others, UNUSED)
        return value, flatten(dict.fromkeys(params) | dict(zip(self.paths, grads, strict=True)))


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
        if FUNCTION in given:
            given = given | {FUNCTION: self._second(given[FUNCTION])}
        refuse_unused(plain_options(self.kernel.program), given)
        return self._replace(hyper=self.kernel.program.offered(self.hyper, given))

    def _second(self, gradients: Any) -> Any:
        """Return the second gradients, as the engine takes them from a loss function.

        Args:
            gradients: a function of the points at which they are taken, or a loss to search along.
        """
        if isinstance(gradients, Along):
            return gradients.function()
        points, wanted = self.kernel.compiled.points(self.params, self.state, self.grads, self.hyper)
        return second.known(gradients(points) if wanted else jax.tree.map(jnp.zeros_like, points))


def given_of(**values: Any) -> dict[str, Any]:
    """Return what a call was given, from arguments of the stateful face; None: nothing.

    Raises:
        TypeError: if the loss is not numeric, or `second` is no function.
    """
    if not (callable(values.get("second") or len) or isinstance(values["second"], Along)):
        raise TypeError(f"`second` must be a function of arrays by path. Received: second={values['second']!r}")
    given = {NAMES[name]: value_of(x) for name, x in values.items() if x is not None}
    return given | ({LOSS: as_array(given[LOSS], "loss")} if LOSS in given else {})
