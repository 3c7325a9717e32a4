"""Control flow: `tf.cond` and `tf.while_loop`, whose branches may assign variables, and what runs at once in JAX."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxopt_keras.stateful.custom.errors import WITHOUT, HookError
from jaxopt_keras.stateful.operators import in_tensor, value_of
from jaxopt_keras.stateful.scope import Scope, active_scope


def cond(pred: Any, true_fn: Any = None, false_fn: Any = None, name: str | None = None) -> Any:
    """Call one of two functions. If `pred` is traced, both are traced, and the compiled step runs one of them.

    Assignments to variables take effect in the branch that runs. Both branches must return arrays of one structure.
    """
    pred = value_of(pred)
    if not isinstance(pred, Tracer):
        return true_fn() if pred else false_fn()
    scope = active_scope() or Scope([], [])
    known: list[int] = []

    def branch(function: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            values, written, reads = dict(scope.values), dict(scope.written), set(scope.read_ids)
            scope.written.clear()
            try:
                out = jax.tree.map(lambda x: jnp.asarray(value_of(x)), function())
                return out, {k: scope.values[k] for k in scope.written}
            except (jax.errors.JAXTypeError, HookError):
                raise
            except Exception as error:
                raise HookError(
                    f"A branch of `tf.cond` raises an error when it is traced: {type(error).__name__}: {error}. Both "
                    f"branches are traced where the condition is an array. If that is not wanted, {WITHOUT}."
                ) from error
            finally:
                variables.update(scope.written)
                scope.values, scope.written, scope.read_ids = values, written | {}, reads | scope.read_ids

        return run

    variables: dict[int, Any] = {}
    shapes = [jax.eval_shape(branch(f)) for f in (true_fn, false_fn)]
    outs = [out for out, _ in shapes]
    if jax.tree.structure(outs[0]) != jax.tree.structure(outs[1]) or _shapes(outs[0]) != _shapes(outs[1]):
        raise HookError(
            f"The branches of `tf.cond` return different structures or shapes: {outs[0]} and {outs[1]}. Where the "
            f"condition is an array they must be equal. If that is not wanted, {WITHOUT}."
        )
    dtypes = jax.tree.map(lambda x, y: jnp.promote_types(x.dtype, y.dtype), *outs)
    known = list(dict.fromkeys(k for _, changed in shapes for k in changed))

    def full(function: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            out, changed = branch(function)()
            return jax.tree.map(lambda x, d: x.astype(d), out, dtypes), [
                changed[k] if k in changed else scope.read(variables[k]) for k in known
            ]

        return run

    out, values = jax.lax.cond(jnp.reshape(pred, ()).astype(bool), full(true_fn), full(false_fn))
    for k, x in zip(known, values, strict=True):
        scope.write(variables[k], x)
    return jax.tree.map(in_tensor, out)


def _shapes(tree: Any) -> list[Any]:
    return [x.shape for x in jax.tree.leaves(tree)]


def while_loop(
    cond: Callable[..., Any],
    body: Callable[..., Any],
    loop_vars: Any,
    shape_invariants: Any = None,
    parallel_iterations: int = 10,
    back_prop: bool = True,
    swap_memory: bool = False,
    maximum_iterations: Any = None,
    name: str | None = None,
) -> Any:
    """Call `body` while `cond` holds. Traced values make a compiled loop, whose body may not assign variables."""
    values = [*jax.tree.map(value_of, [*loop_vars])]
    left = maximum_iterations
    first = cond(*values)
    while not isinstance(value_of(first), Tracer):
        if not first or left == 0:
            return values
        out = body(*values)
        values = list(out) if isinstance(out, (list, tuple)) else [out]
        left, first = None if left is None else left - 1, cond(*values)
    count = jnp.int32(0)
    arrays = [jnp.asarray(value_of(x)) for x in values]

    def proceed(state: Any) -> Any:
        good = jnp.reshape(value_of(cond(*state[1])), ()).astype(bool)
        return good if left is None else good & (state[0] < left)

    def step(state: Any) -> Any:
        out = body(*state[1])
        out = list(out) if isinstance(out, (list, tuple)) else [out]
        return state[0] + 1, [jnp.asarray(value_of(y), x.dtype) for x, y in zip(state[1], out, strict=True)]

    return jax.lax.while_loop(proceed, step, (count, arrays))[1]


def group(*inputs: Any, name: str | None = None) -> None:
    """Do nothing. In TF, hooks return a group of operations to run; here the operations have run already."""


def no_op(name: str | None = None) -> None:
    """Do nothing."""


@contextlib.contextmanager
def nothing(*args: Any, **kwargs: Any) -> Iterator[None]:
    """Do nothing: operations run in the order of the code, on JAX's devices."""
    yield


def function(func: Any = None, **kwargs: Any) -> Any:
    """Return the function: the step that calls it is compiled."""
    return (lambda f: f) if func is None else func
