"""Minimization of losses: `minimize` and its relatives, which compute gradients and apply them."""

from collections.abc import Callable
from types import NoneType
from typing import Any

from jaxopt_keras.stateful.attributes import Attributes
from jaxopt_keras.stateful.gradients import pullback
from jaxopt_keras.stateful.state_views import View
from jaxopt_keras.stateful.validation import variable_list
from jaxopt_keras.stateful.variable_kinds import handle


class Losses(Attributes):
    """Steps down the gradient of a loss, and the gradient itself."""

    def minimize(self, loss: Callable[[], Any], var_list: Any, grad_loss: Any = None, name: str | None = None) -> View:
        """Take one step down the gradient of `loss`.

        Args:
            loss: a function without arguments that reads variables and returns a scalar, or with `grad_loss` an array.
            var_list: a list of variables, or a function that returns one. Such a function is called after a first call
                of `loss`, which may create the variables; `loss` is called once more for the gradient.
            grad_loss: the gradient of the minimized number with respect to the loss; None: 1.
            name: accepted for compatibility with TF; has no effect.

        Returns:
            `iterations`.

        Raises:
            TypeError, ValueError: as `apply_gradients` and `value_and_grad`.
        """
        return self.apply_gradients(zip(*self._gradients(loss, var_list, grad_loss), strict=True))

    def get_gradients(self, loss: Callable[[], Any], params: Any) -> list[Any]:
        """Return the gradients of `loss` with respect to the variables `params`.

        Raises:
            ValueError: if the loss does not read one of them.
        """
        grads, variables = self._gradients(loss, params, None)
        missing = [handle(v).path for g, v in zip(grads, variables, strict=True) if g is None]
        if missing:
            raise ValueError(f"There is no gradient for {missing}: the loss does not read them.")
        return grads

    def get_updates(self, loss: Callable[[], Any], params: Any) -> list[Any]:
        """Apply the gradients of `loss`, and return `[iterations]`: legacy Keras returned a list of operations."""
        variables = variable_list("params", params)
        return [self.apply_gradients(zip(self.get_gradients(loss, variables), variables, strict=True))]

    def _gradients(self, loss: Any, var_list: Any, grad_loss: Any) -> tuple[list[Any], list[Any]]:
        """Return the gradients of `loss`, and the variables, for the arguments of `minimize`."""
        if not callable(loss):
            raise TypeError(
                f"`loss` must be a function without arguments. Received: {type(loss).__name__}. There is no tape: wrap "
                "the computation, `lambda: ...`, or see `jaxopt_keras.value_and_grad`."
            )
        if callable(var_list):
            loss()
        variables = variable_list("var_list", var_list)
        _, grads = pullback(loss, variables, grad_loss)
        return grads, variables

    def scale_loss(self, loss: Any) -> Any:
        """Return the loss times `loss_scale_factor`; the step divides gradients by this factor."""
        factor = self._options.loss_scale_factor
        if isinstance(loss, (str, list, tuple, NoneType)):
            raise TypeError(f"`loss` must be a number or an array. Received: loss={loss!r}")
        return loss if factor is None else loss * factor
