"""Gradients with respect to variables, in the place of TensorFlow's `GradientTape`, and steps down them."""

import contextlib
import functools
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_keras.stateful.scope import Scope
from jaxopt_keras.stateful.state_views import View
from jaxopt_keras.stateful.transactions import Transactions
from jaxopt_keras.stateful.validation import variable_list
from jaxopt_keras.stateful.variable import as_array, value_of
from jaxopt_keras.stateful.variable_kinds import handle


def value_and_grad(loss: Callable[..., Any], variables: Sequence[Any], *args: Any, has_aux: bool = False) -> Any:
    """Compute a loss and its gradients with respect to variables.

    Args:
        loss: a function of `args` that reads the variables (`v.value`, or in arithmetic) and returns a scalar; with
            `has_aux`, a pair (scalar, a pytree of arrays).
        variables: a list of `jaxopt_keras.Variable`s or `keras.Variable`s.
        *args: pytrees of arrays, such as a batch. With `args` the call is compiled once for each function and set of
            shapes; the compiled function treats everything but `args` and variables as a constant. Without `args` the
            call runs operation by operation, and reads current values of all that the function uses.
        has_aux: whether `loss` returns a pair.

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
    try:
        traced = _cached_trace(_Key(loss, trained, has_aux))
    except TypeError:  # an unhashable callable
        traced = Traced(loss, trained, has_aux)
    return with_none(variables, *traced.compiled(args))


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
        _, grads = pullback(loss, variables, grad_loss)
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


class Traced:
    """A loss that reads variables, as a pure function of their values."""

    def __init__(
        self, loss: Callable[..., Any], variables: Sequence[Any], has_aux: bool, grad_loss: Any = None
    ) -> None:
        self.loss, self.variables, self.has_aux, self.grad_loss = loss, [*variables], has_aux, grad_loss
        self.others: list[Any] = []  # other variables that the loss uses
        self.jitted = jax.jit(self._pure)

    def eager(self) -> Any:
        """Run operation by operation, with the current values of all that the loss uses."""
        return self._assigned(*self._pure([v.value for v in self.variables], [], ()))

    def compiled(self, args: Any) -> Any:
        """Run as one compiled program. Other variables found by tracing become inputs; they would be constants."""
        while True:
            try:
                inputs = [v.value for v in self.variables], [v.value for v in self.others]
                return self._assigned(*self.jitted(*inputs, args))
            except _UnmappedVariables as found:
                self.others += found.args[0]
                self.jitted = jax.jit(self._pure)

    def _assigned(self, out: Any, written: dict[int, Any]) -> Any:
        """Assign what the loss assigned, `written` by index in `variables + others`, and return `out`."""
        known = self.variables + self.others
        for i, value in written.items():
            known[i].assign(value)
        return out

    def _pure(self, values: list[Any], others: list[Any], args: Any) -> tuple[Any, dict[int, Any]]:
        """Return ((loss[, aux]), gradients), and assigned values by index in `variables + others`."""
        read: set[int] = set()

        def run(values: list[Any]) -> Any:
            with _mapped(self.variables + (self.others if others else []), values + others) as scope:
                out = self.loss(*args)
            read.update(scope.read_ids)
            unmapped = [*scope.unmapped.values()]
            if args and unmapped:
                raise _UnmappedVariables(unmapped)
            if not args:
                self.others = unmapped
            known = enumerate(self.variables + self.others)
            written = {i: scope.values[id(v)] for i, v in known if id(v) in scope.written}
            out, aux = _checked_pair(out) if self.has_aux else (out, None)
            return _checked_loss(out), (jax.tree.map(value_of, aux), written)

        out, vjp, (aux, written) = jax.vjp(run, values, has_aux=True)
        (grads,) = vjp(self._cotangent(out))
        grads = [g if id(v) in read else None for v, g in zip(self.variables, grads, strict=True)]
        return ((out, aux) if self.has_aux else out, grads), written

    def _cotangent(self, out: Any) -> Any:
        """Return the gradient of the minimized scalar with respect to the loss `out`."""
        if self.grad_loss is None:
            if out.ndim:
                raise ValueError(
                    f"`loss` must return a scalar. Received: an array of shape {out.shape}. Take its mean."
                )
            return jnp.ones_like(out)
        cotangent = as_array(self.grad_loss, "grad_loss").astype(out.dtype)
        if cotangent.shape not in ((), out.shape):
            raise ValueError(
                f"`grad_loss` must have the shape of the loss, {out.shape}. Received: shape {cotangent.shape}"
            )
        return jnp.broadcast_to(cotangent, out.shape)


class _UnmappedVariables(BaseException):  # not an Exception, which the loss might catch
    """Raised while a loss is traced: it uses variables, the argument, that are not inputs yet."""


@contextlib.contextmanager
def _mapped(variables: list[Any], values: list[Any]) -> Iterator[Scope]:
    """Map variables to values, Keras's variables too."""
    scope = Scope(variables, values)
    keras_scope = _keras_scope()(scope) if "keras" in sys.modules else contextlib.nullcontext()
    with scope.active(), keras_scope:
        yield scope


@functools.cache
def _keras_scope() -> Any:
    """Return a class of Keras scopes that map Keras's variables as a `Scope` does. Keras is imported only here."""
    import keras

    class KerasScope(keras.StatelessScope):
        def __init__(self, scope: Scope) -> None:
            super().__init__(initialize_variables=False)
            self.scope = scope

        def get_current_value(self, variable: Any) -> Any:
            return self.scope.read(variable, self.outside)

        def outside(self, variable: Any) -> Any:
            if variable._value is None:
                raise ValueError(f"`{variable.path}` is created inside the loss. Build the model first: call it once.")
            outer = self.original_scope
            return variable._value if outer is None else outer.get_current_value(variable)

        def add_update(self, update: tuple[Any, Any]) -> None:
            self.scope.write(*update)

    return KerasScope


def _checked_pair(out: Any) -> tuple[Any, Any]:
    """Return the loss and the auxiliary output that a loss under `has_aux` returned."""
    if isinstance(out, (tuple, list)) and len(out) == 2:
        return out[0], out[1]
    raise TypeError(f"`loss` must return a pair (loss, aux) under `has_aux`. Received: {type(out).__name__}")


def _checked_loss(out: Any) -> Any:
    """Return the output of a loss as an array of floats."""
    array = as_array(out, "loss")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"`loss` must return a float. Received: dtype {array.dtype}")
    return array


class _Key:
    """A loss with its variables, equal to another one of the same code that refers to the same objects.

    A lambda expression in a loop makes a new function in each iteration; their keys are equal.
    """

    def __init__(self, loss: Callable[..., Any], variables: Sequence[Any], has_aux: bool) -> None:
        self.arguments = loss, variables, has_aux
        self.objects = [*variables]  # kept alive, so that no other object gets the identity of one of them
        code: Any = loss
        if isinstance(loss, types.FunctionType):
            code, keywords = loss.__code__, loss.__kwdefaults__ or {}
            self.objects += [loss.__globals__, *(loss.__defaults__ or ()), *keywords, *keywords.values()]
            self.objects += map(_contents, loss.__closure__ or ())
        self.identity = code, has_aux, *map(id, self.objects)

    def __eq__(self, other: Any) -> bool:
        return self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty: the name has no value yet
        return cell


@functools.lru_cache(128)
def _cached_trace(key: _Key) -> Traced:
    """Return the traced loss of an earlier call with an equal key, or a new one."""
    return Traced(*key.arguments)
