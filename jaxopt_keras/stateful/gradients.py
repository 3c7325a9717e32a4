"""Gradients with respect to variables, in the place of TensorFlow's `GradientTape`, and steps down them."""

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_keras.language.second import is_searching
from jaxopt_keras.stateful.call import UNUSED, Along
from jaxopt_keras.stateful.state_views import View
from jaxopt_keras.stateful.traced_loss import Traced, traced_loss
from jaxopt_keras.stateful.transactions import Transactions
from jaxopt_keras.stateful.validation import variable_list
from jaxopt_keras.stateful.variable_kinds import handle


def value_and_grad(loss: Callable[..., Any], variables: Sequence[Any], *args: Any, has_aux: bool = False) -> Any:
    """Compute a loss and its gradients with respect to variables.

    Args:
        loss: a function of `args` that reads the variables (`v.value`, or in arithmetic) and returns a scalar; with
            `has_aux`, a pair (scalar, a pytree of arrays).
        variables: a list of `jaxopt_keras.Variable`s or `keras.Variable`s.
        *args: pytrees of arrays, such as a batch. With `args` the call is compiled once for each function and set of
            shapes. Without `args` it runs operation by operation.
        has_aux: whether `loss` returns a pair.

    What else a compiled loss reads is an argument of the program (variables, and numbers of an optimizer: its scale,
    rate, iterations), or a constant of it. The constants are compared before each call: numbers, flags, strings,
    functions and arrays that the loss names as globals, in closures, in lists and dicts, or as attributes of objects
    such as `self`. If one has changed, the loss is compiled anew; a warning says so if that happens often. Not seen
    are changes inside installed packages and layers of other libraries, inside functions jitted by you, of NumPy
    arrays in place, of containers of more than 1,000 elements, and of files, clocks and random states of Python. Pass
    these as `args`. Likewise, what the loss itself does besides assigning variables happens only when it is traced.

    Returns:
        `(loss, gradients)`, or `((loss, aux), gradients)`. The gradients are in the order of the variables. The
        gradient of a variable that the loss does not read, or that has `trainable=False`, is None. Assignments in the
        loss take effect, if it succeeds.

    Raises:
        TypeError: if `variables` contains something else, such as a `jax.Ref` or `nnx.Variable` (use `jax.grad` or
            `nnx.grad`), or a trainable variable of integers; if `args` are not arrays, or the loss is not a float.
            ValueError: if the loss is not a scalar.

    >>> from jaxopt_keras import Variable
    >>> w = Variable([1.0, 2.0])
    >>> value, (g,) = value_and_grad(lambda x: jnp.sum(w.value * x), [w], jnp.array([3.0, 4.0]))
    >>> float(value), g.tolist()
    (11.0, [3.0, 4.0])
    """
    if not callable(loss):
        raise TypeError(f"`loss` must be a function. Received: {type(loss).__name__}")
    check_traceable(variables)
    trained = trainable(variables)
    if not args:
        return with_none(variables, *Traced(loss, trained, has_aux).eager())
    for leaf in jax.tree.leaves(args):
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, int, float, complex)):
            raise TypeError(f"`args` must be pytrees of arrays. Received: {leaf!r} ({type(leaf).__name__}) among them")
    return with_none(variables, *traced_loss(loss, trained, has_aux).compiled(args))


def pullback(loss: Callable[[], Any], variables: Sequence[Any], grad_loss: Any = None) -> tuple[Any, list[Any]]:
    """Compute a loss of any shape and the gradients of `sum(grad_loss * loss)`.

    Args:
        loss: a function without arguments that reads the variables.
        variables: a list of variables.
        grad_loss: an array of the loss's shape, or a number; None: 1, for a scalar loss.
    """
    check_traceable(variables)
    return with_none(variables, *Traced(loss, trainable(variables), has_aux=False, grad_loss=grad_loss).eager())


def trainable(variables: Sequence[Any]) -> list[Any]:
    """Return the variables that gradients are computed for: those without `trainable=False`."""
    return [v for v in variables if handle(v).trainable]


def with_none(variables: Sequence[Any], out: Any, grads: list[Any]) -> tuple[Any, list[Any]]:
    """Return `out`, and a gradient for each of `variables` from those of the trainable ones: None for the others."""
    found = iter(grads)
    return out, [next(found) if handle(v).trainable else None for v in variables]


class Losses(Transactions):
    """Steps down the gradient of a loss, and the gradient itself."""

    def minimize(
        self,
        loss: Callable[[], Any],
        var_list: Any,
        grad_loss: Any = None,
        name: str | None = None,
        *,
        second: Callable[[], Any] | None = None,
        weight: Any = None,
        flush: Any = None,
    ) -> View:
        """Take one step down the gradient of `loss`.

        Args:
            loss: a function without arguments that reads variables and returns a scalar, or with `grad_loss` an array.
            var_list: a list of variables, or a function that returns one. Such a function is called after a first call
                of `loss`, which may create the variables; `loss` is called once more for the gradient.
            grad_loss: the gradient of the minimized number with respect to the loss; None: 1.
            name: accepted for compatibility with TF; has no effect.
            second: the loss of the second gradient, a function without arguments, where it is another one (Sophia-G);
                None: it is `loss`.
            weight, flush: as in `apply_gradients`.

        Returns:
            `iterations`.

        Raises:
            TypeError, ValueError: as `apply_gradients` and `value_and_grad`.
        """
        rules = [group._rule for group in self._groups().values()]
        if searches := any(map(is_searching, rules)):
            pairs, along = self._along(loss, var_list, grad_loss)
        else:
            pairs, along = self._compute_gradients(loss, var_list, grad_loss), None
        value = self._loss_seen
        takes = {name for rule in rules for name in getattr(rule, "takes", ())}
        given = {"loss": value if "loss" in takes and jnp.ndim(value) == 0 else None, "weight": weight, "flush": flush}
        if "function" in takes:
            given["second"] = (
                along if searches else lambda points: self._gradients_at(points, second or loss, grad_loss)
            )
        return self.apply_gradients(pairs, **{name: x for name, x in given.items() if x is not None})

    def _compute_gradients(self, loss: Any, var_list: Any, grad_loss: Any = None, tape: None = None) -> list[Any]:
        """Return the (gradient, variable) pairs of `minimize`, which TF 2's classes may override."""
        given = (lambda: self._transform_loss(loss())) if callable(loss) else loss
        return [*zip(*self._gradients(given, var_list, grad_loss), strict=True)]

    def _along(self, loss: Any, var_list: Any, grad_loss: Any) -> tuple[list[Any], Along]:
        """Return the pairs of `minimize`, and the loss to search along, which is compiled and kept between calls."""
        if not callable(loss) or grad_loss is not None:
            raise TypeError(
                "A search along the loss needs a function without arguments that returns one number, and no `grad_loss`"
                f". Received: loss={loss!r}, grad_loss={grad_loss!r}"
            )
        if callable(var_list):
            loss()
        variables = variable_list("var_list", var_list)
        check_traceable(variables)
        trained = trainable(variables)
        traced = traced_loss(functools.partial(self._transformed, loss), trained, has_aux=False)
        value, grads = with_none(variables, *traced.compiled(UNUSED))
        object.__setattr__(self, "_loss_seen", value)
        return [*zip(grads, variables, strict=True)], Along(traced, trained, self._keys)

    def _transformed(self, loss: Callable[[], Any], _: Any) -> Any:
        return self._transform_loss(loss())

    def _gradients_at(self, points: dict[str, Any], loss: Any, grad_loss: Any) -> dict[str, Any]:
        """Return the gradients of the loss of `minimize` for other values of the variables, by path.

        What the loss assigns is not kept: it was assigned by its call for the first gradients.
        """
        variables = {path: h.variable for path, h in self._handles.items() if path in points and h.trainable}
        traced = Traced(lambda: self._transform_loss(loss()), [*variables.values()], has_aux=False, grad_loss=grad_loss)
        (_, grads), _ = traced._pure([points[path] for path in variables], [], ())
        return dict.fromkeys(points) | dict(zip(variables, grads, strict=True))

    def _transform_loss(self, loss: Any) -> Any:
        """Return the loss that `minimize` differentiates."""
        return loss

    def get_gradients(self, loss: Callable[[], Any], params: Any) -> list[Any]:
        """Return the gradients of `loss` with respect to the variables `params`; None for one with `trainable=False`.

        Raises:
            ValueError: if the loss does not read one of them.
        """
        grads, variables = self._gradients(loss, params, None)
        handles = map(handle, variables)
        missing = [h.path for g, h in zip(grads, handles, strict=True) if g is None and h.trainable]
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
        value, grads = pullback(loss, variables, grad_loss)
        object.__setattr__(self, "_loss_seen", value)
        return grads, variables

    def scale_loss(self, loss: Any) -> Any:
        """Return the loss times `loss_scale_factor`; the step divides gradients by this factor."""
        factor = self._options.loss_scale_factor
        if isinstance(loss, (str, list, tuple, types.NoneType)):
            raise TypeError(f"`loss` must be a number or an array. Received: loss={loss!r}")
        return loss if factor is None else loss * factor


def check_traceable(variables: Sequence[Any]) -> None:
    """Check that gradients with respect to the variables can be computed.

    Raises:
        TypeError: if reads of a variable cannot be traced, or its values are not floats or complex numbers. ValueError:
            if a packed variable and its buffer are both among them.
    """
    if not isinstance(variables, (list, tuple)):
        raise TypeError(f"`variables` must be a list of variables. Received: {type(variables).__name__}")
    for h in map(handle, variables):
        if h.kind:
            raise TypeError(
                f"`value_and_grad` cannot trace reads of a {type(h.variable).__name__}. Compute the gradients with "
                "`jax.grad` of a function of arrays (`nnx.grad` for nnx), then call `apply_gradients`."
            )
        if h.trainable and not jnp.issubdtype(h.read().dtype, jnp.inexact):
            raise TypeError(f"`{h.path}` must be of floats or complex numbers. Received: dtype {h.read().dtype}")
    given = {*map(id, variables)}
    for v in variables:
        if id(getattr(v, "buffer", None)) in given:
            raise ValueError(f"`{v.path}` is packed in `{v.buffer.path}`. Received: both of them. Pass only one.")
