"""Gradients with respect to variables: the answer to `GradientTape`."""

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

from jaxopt_keras.stateful.variable import ArrayLike, Scope, as_array, value_of
from jaxopt_keras.stateful.variable_kinds import Handle, KerasHandle, VariableHandle, handle


def value_and_grad(loss: Callable[..., Any], variables: Sequence[Any], *args: Any, has_aux: bool = False) -> Any:
    """The loss and its gradients with respect to variables.

    Args:
        loss: a function of `args` that reads the variables (`v.value`, or in arithmetic) and returns a scalar;
            with `has_aux`, a pair (scalar, a pytree of arrays).
        variables: `jaxopt_keras.Variable`s or `keras.Variable`s.
        *args: pytrees of arrays, a batch say. With them the call is compiled, once for each function and each set of
            shapes: what the function reads besides must be a variable, or it is a constant. Without them it runs
            operation by operation, and is right with whatever it closes over at that moment.

    Returns:
        `(loss, gradients)`, or `((loss, aux), gradients)`; gradients in the order of the variables, None for one that
        the loss does not read. Variables that the loss assigns are assigned, unless it raises.

    Raises:
        TypeError: for what is no variable, or whose reads cannot be seen (a `jax.Ref`, an `nnx.Variable`: these have
            `jax.grad` and `nnx.grad`). ValueError: if the loss is no scalar.

    >>> from jaxopt_keras import Variable
    >>> w = Variable([1.0, 2.0])
    >>> value, (g,) = value_and_grad(lambda x: jnp.sum(w.value * x), [w], jnp.array([3.0, 4.0]))
    >>> float(value), g.tolist()
    (11.0, [3.0, 4.0])
    """
    if not callable(loss):
        raise TypeError(f"`loss` must be a function. Received: {type(loss).__name__}")
    handles = readable(variables)
    if not args:
        return Traced(loss, handles, has_aux).eager()
    for leaf in jax.tree.leaves(args):
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, int, float, complex)):
            raise TypeError(f"`args` must be pytrees of arrays. Received: {leaf!r} ({type(leaf).__name__}) among them")
    return _compiled(loss, handles, has_aux).compiled(args)


def pullback(loss: Callable[[], Any], variables: Sequence[Any], grad_loss: Any = None) -> tuple[Any, list[Any]]:
    """The loss, of any shape, and the gradients of `sum(grad_loss * loss)`; `grad_loss` None: of a scalar loss."""
    return Traced(loss, readable(variables), has_aux=False, grad_loss=grad_loss).eager()


def readable(variables: Sequence[Any]) -> list[Handle]:
    """The handles of variables whose reads can be traced."""
    if not isinstance(variables, (list, tuple)):
        raise TypeError(f"`variables` must be a list of variables. Received: {type(variables).__name__}")
    handles = [handle(v) for v in variables]
    for h in handles:
        if not isinstance(h, (VariableHandle, KerasHandle)):
            raise TypeError(
                f"Gradients of a {type(h.variable).__name__} cannot be taken here: its reads cannot be seen. Use "
                "`jax.grad` of a function of arrays (`nnx.grad` for nnx), then `apply_gradients`."
            )
        if not jnp.issubdtype(h.read().dtype, jnp.inexact):
            raise TypeError(f"`{h.path}` has no gradient. Received: a variable of dtype {h.read().dtype}")
    given = {id(v) for v in variables}
    for v in variables:
        if id(getattr(v, "buffer", None)) in given:
            raise ValueError(f"`{v.path}` lies in `{v.buffer.path}`. Received: it together with that buffer")
    return handles


class Traced:
    """A loss over variables as a pure function of their values."""

    def __init__(self, loss: Callable[..., Any], handles: list[Handle], has_aux: bool, grad_loss: Any = None) -> None:
        self.loss, self.has_aux, self.grad_loss = loss, has_aux, grad_loss
        self.variables = [h.variable for h in handles]
        self.others: list[Any] = []  # variables that the loss uses besides
        self.jitted = jax.jit(self._pure)

    def eager(self) -> Any:
        """Operation by operation: right with whatever the loss closes over now."""
        return self._assigned(*self._pure([v.value for v in self.variables], [], ()))

    def compiled(self, args: Any) -> Any:
        """As one program. Variables that tracing finds are made inputs of it, or they would be constants."""
        while True:
            try:
                inputs = [v.value for v in self.variables], [v.value for v in self.others]
                return self._assigned(*self.jitted(*inputs, args))
            except _FoundVariables as found:
                self.others += found.variables
                self.jitted = jax.jit(self._pure)

    def _assigned(self, out: Any, written: dict[int, Any]) -> Any:
        """`out`, once the variables that the loss assigned have their new values."""
        known = self.variables + self.others
        for i, value in written.items():
            known[i].assign(value)
        return out

    def _pure(self, values: list[Any], others: list[Any], args: Any) -> tuple[Any, dict[int, Any]]:
        """((loss[, aux]), gradients), and the values of the assigned variables by their place in variables + others."""
        seen: list[_Scopes] = []

        def run(values: list[Any]) -> Any:
            mapped = zip(self.variables + (self.others if others else []), values + others, strict=True)
            with _Scopes(list(mapped)) as scopes:
                out = self.loss(*args)
            seen.append(scopes)
            outside = scopes.outside()
            if args and outside:
                raise _FoundVariables(outside)
            if not args:
                self.others = outside
            out, aux = _pair(out) if self.has_aux else (out, None)
            return _real(out), (jax.tree.map(value_of, aux), scopes.written(self.variables + self.others))

        out, vjp, (aux, written) = jax.vjp(run, values, has_aux=True)
        (grads,) = vjp(self._seed(out))
        read = seen[0].read()
        grads = [g if id(v) in read else None for v, g in zip(self.variables, grads, strict=True)]
        return ((out, aux) if self.has_aux else out, grads), written

    def _seed(self, out: Any) -> Any:
        """The gradient with respect to `out`."""
        if self.grad_loss is None:
            if out.ndim:
                raise ValueError(
                    f"`loss` must return a scalar. Received: an array of shape {out.shape}. Take its mean."
                )
            return jnp.ones_like(out)
        seed = as_array(self.grad_loss, "grad_loss").astype(out.dtype)
        if seed.shape not in ((), out.shape):
            raise ValueError(f"`grad_loss` must have the shape of the loss, {out.shape}. Received: shape {seed.shape}")
        return jnp.broadcast_to(seed, out.shape)


class _FoundVariables(BaseException):  # not an Exception: the loss itself may catch those
    def __init__(self, variables: list[Any]) -> None:
        self.variables = variables


class _Scopes:
    """The scope of our variables, and Keras's of Keras's, as one."""

    def __init__(self, mapped: list[tuple[Any, Any]]) -> None:
        ours = [(v, x) for v, x in mapped if isinstance(v, ArrayLike)]
        self.ours = Scope([v for v, _ in ours], [x for _, x in ours])
        self.all: list[Any] = [self.ours]
        if "keras" in sys.modules:
            self.all.append(_recording_scope()([(v, x) for v, x in mapped if not isinstance(v, ArrayLike)]))
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> "_Scopes":
        self.stack.enter_context(self.ours.active())
        for scope in self.all[1:]:
            self.stack.enter_context(scope)
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.close()

    def outside(self) -> list[Any]:
        """The variables that were used, but are not mapped."""
        return [v for scope in self.all for v in scope.outside.values()]

    def read(self) -> set[int]:
        """The ids of the variables that were read."""
        return {i for scope in self.all for i in scope.read_ids}

    def written(self, variables: list[Any]) -> dict[int, Any]:
        """The values that variables were assigned, by their place in `variables`."""
        values = {i: scope.values[i] for scope in self.all for i in scope.written}
        return {place: values[id(v)] for place, v in enumerate(variables) if id(v) in values}


@functools.cache
def _recording_scope() -> Any:
    """Keras's scope, which notes what is used, as ours does. Made late: Keras may not be there."""
    import keras

    class Recording(keras.StatelessScope):
        def __init__(self, mapped: list[tuple[Any, Any]]) -> None:
            super().__init__(state_mapping=mapped, initialize_variables=False)
            self.read_ids: set[int] = set()
            self.written: dict[int, Any] = {}
            self.outside: dict[int, Any] = {}

        @property
        def values(self) -> dict[int, Any]:
            return self.state_mapping

        def get_current_value(self, variable: Any) -> Any:
            self.read_ids.add(id(variable))
            value = super().get_current_value(variable)
            if value is not None:
                return value
            if variable._value is None:
                raise ValueError(f"`{variable.path}` is made inside the loss. Build the model before: call it once.")
            self.outside[id(variable)] = variable
            around = self.original_scope
            return variable._value if around is None else around.get_current_value(variable)

        def add_update(self, update: tuple[Any, Any]) -> None:
            variable, _ = update
            if id(variable) not in self.state_mapping:
                self.outside[id(variable)] = variable
            self.written[id(variable)] = variable
            super().add_update(update)

    return Recording


def _pair(out: Any) -> tuple[Any, Any]:
    if isinstance(out, (tuple, list)) and len(out) == 2:
        return out[0], out[1]
    raise TypeError(f"`loss` must return a pair (loss, aux) under `has_aux`. Received: {type(out).__name__}")


def _real(out: Any) -> Any:
    """What a loss returned, as an array of floats."""
    array = as_array(out, "loss") if not isinstance(out, Tracer) else out
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"`loss` must return a float. Received: dtype {array.dtype}")
    return array


class _Same:
    """A tuple that is equal to another of the very same objects."""

    def __init__(self, objects: tuple[Any, ...]) -> None:
        self.objects = objects

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _Same) and list(map(id, self.objects)) == list(map(id, other.objects))

    def __hash__(self) -> int:
        return hash(tuple(map(id, self.objects)))


def _program(loss: Callable[..., Any]) -> Any:
    """What makes a function do what it does: a lambda that a loop makes anew is the same one each time."""
    if not isinstance(loss, types.FunctionType):
        return loss
    keywords = loss.__kwdefaults__ or {}
    held = [loss.__globals__, *(loss.__defaults__ or ()), *keywords, *keywords.values()]
    for cell in loss.__closure__ or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:  # empty: the name has no value yet
            held.append(cell)
    return loss.__code__, _Same(tuple(held))


_cache: collections.OrderedDict[Any, Traced] = collections.OrderedDict()
_CACHED = 128


def _compiled(loss: Callable[..., Any], handles: list[Handle], has_aux: bool) -> Traced:
    """The traced loss of an earlier call with the same function and variables, or a new one."""
    key = (_program(loss), tuple(id(h.variable) for h in handles), has_aux)
    try:
        traced = _cache.pop(key, None) or Traced(loss, handles, has_aux)
    except TypeError:  # an unhashable callable
        return Traced(loss, handles, has_aux)
    _cache[key] = traced
    while len(_cache) > _CACHED:
        _cache.popitem(last=False)
    return traced
