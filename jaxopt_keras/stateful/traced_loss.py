"""A loss over variables as a pure function, and as a compiled program that is kept between calls."""

import functools
import itertools
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_keras.stateful.keras_scope import mapped
from jaxopt_keras.stateful.python_reads import Reads, contents, identity
from jaxopt_keras.stateful.scope import Scope
from jaxopt_keras.stateful.variable import as_array, value_of

PROGRAMS = 8  # of one loss, for different values of what it reads
MANY = 10  # compilations of one function, after which a warning says why


class Traced:
    """A loss that reads variables, as a pure function of their values."""

    def __init__(
        self, loss: Callable[..., Any], variables: Sequence[Any], has_aux: bool, grad_loss: Any = None
    ) -> None:
        self.loss, self.variables, self.has_aux, self.grad_loss = loss, [*variables], has_aux, grad_loss
        self.others: list[Any] = []  # other variables that the loss uses
        self.jitted = jax.jit(self._pure)
        self.reads: Reads | None = None  # made after the first trace, which may change what the loss reads

    def eager(self) -> Any:
        """Run operation by operation, with the current values of all that the loss uses."""
        return self._assigned(*self._pure([v.value for v in self.variables], [], ()))

    def compiled(self, args: Any) -> Any:
        """Run as one compiled program. Other variables found by tracing become inputs; they would be constants."""
        before = None if self.reads else Reads(self.loss)
        while True:
            try:
                inputs = [v.value for v in self.variables], [v.value for v in self.others]
                results = self.jitted(*inputs, args)
            except _UnmappedVariables as found:
                self.others += found.args[0]
                self.jitted = jax.jit(self._pure)
            else:
                self.reads = self.reads or Reads(self.loss, before)
                return self._assigned(*results)

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
            scope = Scope(self.variables + (self.others if others else []), values + others)
            with mapped(scope):
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


def traced_loss(loss: Callable[..., Any], variables: Sequence[Any], has_aux: bool) -> Traced:
    """Return the traced loss of an earlier call, if all that it read is as it was then; else a new one."""
    try:
        traces = _cached_traces(_Key(loss, variables, has_aux))
    except TypeError:  # an unhashable callable
        return Traced(loss, variables, has_aux)
    changed: Any = [("its closure, globals or defaults",)]
    for traced in traces:
        changed = traced.reads.changed_places() if traced.reads else [("the failure of an earlier call",)]
        if not changed:
            return traced
    _count_compilation(loss, variables, [place[-1] for place in changed])
    traces.insert(0, Traced(loss, variables, has_aux))
    del traces[PROGRAMS:]
    return traces[0]


class _Key:
    """A loss with its variables, equal to another one of the same code that refers to the same objects.

    A lambda expression in a loop makes a new function in each iteration; their keys are equal.
    """

    def __init__(self, loss: Callable[..., Any], variables: Sequence[Any], has_aux: bool) -> None:
        code, objects = _code_and_objects(loss)
        self.objects = [*objects, *variables]  # kept alive, so that no other object gets the identity of one of them
        self.identity = code, has_aux, *map(identity, self.objects)

    def __eq__(self, other: Any) -> bool:
        return self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)


def _code_and_objects(loss: Any) -> tuple[Any, list[Any]]:
    """Return the code of a function and what belongs to it: globals, defaults, what it closes over or is bound to."""
    if isinstance(loss, functools.partial):
        code, objects = _code_and_objects(loss.func)
        return code, [*objects, *loss.args, *loss.keywords, *loss.keywords.values()]
    if not isinstance(loss, types.FunctionType):
        return loss, []
    keywords = loss.__kwdefaults__ or {}
    values = *(loss.__defaults__ or ()), *keywords, *keywords.values()
    return loss.__code__, [loss.__globals__, *values, *map(contents, loss.__closure__ or ())]


@functools.lru_cache(128)
def _cached_traces(key: _Key) -> list[Traced]:
    """Return the traces of earlier calls with an equal key, the latest first."""
    return []


@functools.lru_cache(512)
def _compilations(code: Any, variables: tuple[int, ...]) -> Iterator[int]:
    """Return a counter of the programs for one code and list of variables."""
    return itertools.count(1)


def _count_compilation(loss: Any, variables: Sequence[Any], changed: list[str]) -> None:
    """Warn if one function is compiled many times for the same variables: `changed` says why."""
    code = _code_and_objects(getattr(loss, "__func__", loss))[0]
    if isinstance(code, types.CodeType) and next(_compilations(code, tuple(map(id, variables)))) == MANY:
        warnings.warn(
            f"`value_and_grad` has compiled `{code.co_qualname}` {MANY} times, since what the loss reads changes: "
            f"{', '.join(dict.fromkeys(changed))}. Pass it as an argument, `value_and_grad(loss, variables, x, scale)`,"
            " or keep it in a `Variable`.",
            stacklevel=4,
        )
