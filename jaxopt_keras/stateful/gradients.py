"""Gradients with respect to variables, in the place of TensorFlow's `GradientTape`."""

import collections
import contextlib
import functools
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxopt_keras.stateful.scope import Scope
from jaxopt_keras.stateful.variable import ArrayLike, as_array, value_of
from jaxopt_keras.stateful.variable_kinds import Handle, KerasHandle, VariableHandle, handle


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
        gradient of a variable that the loss does not read is None. Assignments in the loss take effect, if it succeeds.

    Raises:
        TypeError: if `variables` contains something else, such as a `jax.Ref` or `nnx.Variable` (use `jax.grad` or
            `nnx.grad`), or a variable of integers; if `args` are not arrays, or the loss is not a float. ValueError: if
            the loss is not a scalar.

    >>> from jaxopt_keras import Variable
    >>> w = Variable([1.0, 2.0])
    >>> value, (g,) = value_and_grad(lambda x: jnp.sum(w.value * x), [w], jnp.array([3.0, 4.0]))
    >>> float(value), g.tolist()
    (11.0, [3.0, 4.0])
    """
    if not callable(loss):
        raise TypeError(f"`loss` must be a function. Received: {type(loss).__name__}")
    handles = checked_handles(variables)
    if not args:
        return Traced(loss, handles, has_aux).eager()
    for leaf in jax.tree.leaves(args):
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, int, float, complex)):
            raise TypeError(f"`args` must be pytrees of arrays. Received: {leaf!r} ({type(leaf).__name__}) among them")
    return _cached_trace(loss, handles, has_aux).compiled(args)


def pullback(loss: Callable[[], Any], variables: Sequence[Any], grad_loss: Any = None) -> tuple[Any, list[Any]]:
    """Compute a loss of any shape and the gradients of `sum(grad_loss * loss)`.

    Args:
        loss: a function without arguments that reads the variables.
        variables: a list of variables.
        grad_loss: an array of the loss's shape, or a number; None: 1, for a scalar loss.
    """
    return Traced(loss, checked_handles(variables), has_aux=False, grad_loss=grad_loss).eager()


def checked_handles(variables: Sequence[Any]) -> list[Handle]:
    """Return the handles of variables, after checking that gradients with respect to them can be computed.

    Raises:
        TypeError: if reads of a variable cannot be traced, or its values are not floats or complex numbers. ValueError:
            if a packed variable and its buffer are both among them.
    """
    if not isinstance(variables, (list, tuple)):
        raise TypeError(f"`variables` must be a list of variables. Received: {type(variables).__name__}")
    handles = [handle(v) for v in variables]
    for h in handles:
        if not isinstance(h, (VariableHandle, KerasHandle)):
            raise TypeError(
                f"`value_and_grad` cannot trace reads of a {type(h.variable).__name__}. Compute the gradients with "
                "`jax.grad` of a function of arrays (`nnx.grad` for nnx), then call `apply_gradients`."
            )
        if not jnp.issubdtype(h.read().dtype, jnp.inexact):
            raise TypeError(f"`{h.path}` must be of floats or complex numbers. Received: dtype {h.read().dtype}")
    given = {id(v) for v in variables}
    for v in variables:
        if id(getattr(v, "buffer", None)) in given:
            raise ValueError(f"`{v.path}` is packed in `{v.buffer.path}`. Received: both of them. Pass only one.")
    return handles


class Traced:
    """A loss that reads variables, as a pure function of their values."""

    def __init__(self, loss: Callable[..., Any], handles: list[Handle], has_aux: bool, grad_loss: Any = None) -> None:
        self.loss, self.has_aux, self.grad_loss = loss, has_aux, grad_loss
        self.variables = [h.variable for h in handles]
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
                self.others += found.variables
                self.jitted = jax.jit(self._pure)

    def _assigned(self, out: Any, written: dict[int, Any]) -> Any:
        """Assign what the loss assigned, `written` by index in `variables + others`, and return `out`."""
        known = self.variables + self.others
        for i, value in written.items():
            known[i].assign(value)
        return out

    def _pure(self, values: list[Any], others: list[Any], args: Any) -> tuple[Any, dict[int, Any]]:
        """Return ((loss[, aux]), gradients), and assigned values by index in `variables + others`."""
        used: list[_JointScope] = []

        def run(values: list[Any]) -> Any:
            mapped = zip(self.variables + (self.others if others else []), values + others, strict=True)
            with _JointScope(list(mapped)) as scopes:
                out = self.loss(*args)
            used.append(scopes)
            unmapped = scopes.unmapped()
            if args and unmapped:
                raise _UnmappedVariables(unmapped)
            if not args:
                self.others = unmapped
            out, aux = _checked_pair(out) if self.has_aux else (out, None)
            return _checked_loss(out), (jax.tree.map(value_of, aux), scopes.written(self.variables + self.others))

        out, vjp, (aux, written) = jax.vjp(run, values, has_aux=True)
        (grads,) = vjp(self._cotangent(out))
        read = used[0].read()
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
    """Raised while a loss is traced: it uses variables that are not inputs yet."""

    def __init__(self, variables: list[Any]) -> None:
        self.variables = variables


class _JointScope:
    """A scope for variables of both kinds: a `Scope` for ours, a Keras scope for Keras's."""

    def __init__(self, mapped: list[tuple[Any, Any]]) -> None:
        ours = [(v, x) for v, x in mapped if isinstance(v, ArrayLike)]
        self.ours = Scope([v for v, _ in ours], [x for _, x in ours])
        self.all: list[Any] = [self.ours]
        if "keras" in sys.modules:
            self.all.append(_recording_scope()([(v, x) for v, x in mapped if not isinstance(v, ArrayLike)]))
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> "_JointScope":
        self.stack.enter_context(self.ours.active())
        for scope in self.all[1:]:
            self.stack.enter_context(scope)
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.close()

    def unmapped(self) -> list[Any]:
        """Return the variables that were used, but are not mapped."""
        return [v for scope in self.all for v in scope.unmapped.values()]

    def read(self) -> set[int]:
        """Return the ids of the variables that were read."""
        return {i for scope in self.all for i in scope.read_ids}

    def written(self, variables: list[Any]) -> dict[int, Any]:
        """Return the assigned values, by their variable's index in `variables`."""
        values = {i: scope.values[i] for scope in self.all for i in scope.written}
        return {i: values[id(v)] for i, v in enumerate(variables) if id(v) in values}


@functools.cache
def _recording_scope() -> Any:
    """Return a Keras scope class that records used variables as `Scope` does. Keras is imported only here."""
    import keras

    class Recording(keras.StatelessScope):
        def __init__(self, mapped: list[tuple[Any, Any]]) -> None:
            super().__init__(state_mapping=mapped, initialize_variables=False)
            self.read_ids: set[int] = set()
            self.written: dict[int, Any] = {}
            self.unmapped: dict[int, Any] = {}

        @property
        def values(self) -> dict[int, Any]:
            return self.state_mapping

        def get_current_value(self, variable: Any) -> Any:
            self.read_ids.add(id(variable))
            value = super().get_current_value(variable)
            if value is not None:
                return value
            if variable._value is None:
                raise ValueError(f"`{variable.path}` is created inside the loss. Build the model first: call it once.")
            self.unmapped[id(variable)] = variable
            outer = self.original_scope
            return variable._value if outer is None else outer.get_current_value(variable)

        def add_update(self, update: tuple[Any, Any]) -> None:
            variable, _ = update
            if id(variable) not in self.state_mapping:
                self.unmapped[id(variable)] = variable
            self.written[id(variable)] = variable
            super().add_update(update)

    return Recording


def _checked_pair(out: Any) -> tuple[Any, Any]:
    """Return the loss and the auxiliary output that a loss under `has_aux` returned."""
    if isinstance(out, (tuple, list)) and len(out) == 2:
        return out[0], out[1]
    raise TypeError(f"`loss` must return a pair (loss, aux) under `has_aux`. Received: {type(out).__name__}")


def _checked_loss(out: Any) -> Any:
    """Return the output of a loss as an array of floats."""
    array = as_array(out, "loss") if not isinstance(out, Tracer) else out
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"`loss` must return a float. Received: dtype {array.dtype}")
    return array


class _ByIdentity:
    """A tuple that compares its elements by identity."""

    def __init__(self, objects: tuple[Any, ...]) -> None:
        self.objects = objects

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _ByIdentity) and list(map(id, self.objects)) == list(map(id, other.objects))

    def __hash__(self) -> int:
        return hash(tuple(map(id, self.objects)))


def _function_key(loss: Callable[..., Any]) -> Any:
    """Return a key of a function's code and of all that it refers to.

    A lambda expression in a loop makes a new function in each iteration; their keys are equal.
    """
    if not isinstance(loss, types.FunctionType):
        return loss
    keywords = loss.__kwdefaults__ or {}
    references = [loss.__globals__, *(loss.__defaults__ or ()), *keywords, *keywords.values()]
    for cell in loss.__closure__ or ():
        try:
            references.append(cell.cell_contents)
        except ValueError:  # empty: the name has no value yet
            references.append(cell)
    return loss.__code__, _ByIdentity(tuple(references))


_cache: collections.OrderedDict[Any, Traced] = collections.OrderedDict()
_CACHED = 128


def _cached_trace(loss: Callable[..., Any], handles: list[Handle], has_aux: bool) -> Traced:
    """Return the traced loss of an earlier call with the same function and variables, or a new one."""
    key = (_function_key(loss), tuple(id(h.variable) for h in handles), has_aux)
    try:
        traced = _cache.pop(key, None) or Traced(loss, handles, has_aux)
    except TypeError:  # an unhashable callable
        return Traced(loss, handles, has_aux)
    _cache[key] = traced
    while len(_cache) > _CACHED:
        _cache.popitem(last=False)
    return traced
