"""The second gradient of a call: the loss function is called at another point, before the update.

The function is a part of the run-time values of a call, `FUNCTION`: a `Partial` of arrays, static in all else. It is
called as `run(floats, unflatten, flatten)`. `floats` is a list of arrays, `unflatten` makes the user's tree of
parameters of them, and `flatten` such a list of a tree of gradients. It returns the loss and a list of gradients.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from jaxopt_keras.engine.core import Layout, Now
from jaxopt_keras.engine.given import EMPTY, FUNCTION, LOSS, WEIGHT
from jaxopt_keras.engine.native.ir import LOSS_AND_GRADIENTS
from jaxopt_keras.engine.slot_storage import Stored
from jaxopt_keras.engine.stages import own_counts
from jaxopt_keras.engine.stages.own_counts import OWN_COUNT
from jaxopt_keras.engine.update import dequantized
from jaxopt_keras.language.numerics import is_inexact
from jaxopt_keras.language.options import Options
from jaxopt_keras.packing.trees import unpacked

HOW = (
    "`kernel.minimize(loss, params, state, batch)`, `kernel.step(params, state, grads, value_fn=loss)`, "
    "`kernel.update(grads, state, params, value_fn=loss)`, or in the stateful face `minimize(loss, variables)`"
    ". Keras's `fit` cannot pass it"
)
Evaluate = Callable[[list[Any]], tuple[Any, list[Any]]]


def of_values(value_fn: Any, keywords: dict[str, Any]) -> Partial:
    """Return the run-time value for a function of the parameters, and of keywords, that returns the loss."""
    return Partial(_of_values, value_fn if isinstance(value_fn, Partial) else Partial(value_fn), keywords)


def of_gradients(grad_fn: Any) -> Partial:
    """Return it for a function that returns gradients, of the parameters and of the number of the call, 0."""
    return Partial(_of_gradients, grad_fn if isinstance(grad_fn, Partial) else Partial(grad_fn))


def _of_values(value_fn: Any, keywords: Any, floats: list[Any], unflatten: Any, flatten: Any) -> Any:
    return jax.value_and_grad(lambda x: checked(value_fn(unflatten(x), **keywords)))(floats)


def _of_gradients(grad_fn: Any, floats: list[Any], unflatten: Any, flatten: Any) -> Any:
    return jnp.full((), jnp.nan), flatten(grad_fn(unflatten(floats), 0))


def known(grads: dict[str, Any]) -> Partial:
    """Return it for gradients that are known, by the paths of a dict of parameters."""
    return Partial(_known, grads)


def _known(grads: dict[str, Any], floats: list[Any], unflatten: Any, flatten: Any) -> Any:
    return jnp.full((), jnp.nan), flatten({path: grads.get(path) for path in unflatten(floats)})


def placeholders() -> dict[str, Any]:
    """Return what a call may be given besides gradients, for a program that is traced and not run."""

    def total(params: Any) -> Array:
        sums = [jnp.sum(x.real).astype(jnp.result_type(float)) for x in jax.tree.leaves(params) if is_inexact(x)]
        return sum(sums, jnp.zeros(()))

    return {LOSS: 0.0, WEIGHT: 1.0, FUNCTION: of_values(total, {})}


def scaled(run: Any, scale: Any) -> Partial:
    """Return it for a function whose loss was multiplied by `scale`."""
    return Partial(_scaled, run, scale)


def _scaled(run: Any, scale: Any, *arguments: Any) -> Any:
    value, grads = run(*arguments)
    divide = lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)) / scale.astype(x.real.dtype)
    return divide(value), [divide(g) for g in grads]


def checked(loss: Any) -> Array:
    """Return what the loss function returned.

    Raises:
        TypeError: if it is not one real float.
    """
    if isinstance(loss, tuple | list | dict) or not jnp.issubdtype(getattr(loss, "dtype", type(loss)), jnp.floating):
        raise TypeError(f"The loss function must return one number, a float. Received: {type(loss).__name__}: {loss!r}")
    if jnp.shape(loss):
        raise TypeError(f"The loss function must return one number. Received: an array of shape {jnp.shape(loss)}")
    return jnp.asarray(loss)


def at(run: Any, params: Any) -> tuple[Any, Any]:
    """Return the loss at `params` and its gradients; those of what is not floats are None."""
    leaves, treedef = jax.tree.flatten(params)
    floats = [is_inexact(x) for x in leaves]

    def unflatten(own: list[Any]) -> Any:
        inside = iter(own)
        return treedef.unflatten([next(inside) if is_float else x for x, is_float in zip(leaves, floats, strict=True)])

    value, grads = run(
        [x for x, is_float in zip(leaves, floats, strict=True) if is_float], unflatten, treedef.flatten_up_to
    )
    found = iter(grads)
    return value, treedef.unflatten([next(found) if is_float else None for is_float in floats])


def needed(hyper: dict[str, Any]) -> Any:
    """Return the loss function of a call; None for a call without gradients, which needs none.

    Raises:
        ValueError: if it was not given.
    """
    if FUNCTION not in hyper and EMPTY not in hyper:
        raise ValueError(
            f"This optimizer needs the loss function, for a second gradient. Received: none. Pass it: {HOW}."
        )
    return hyper.get(FUNCTION)


def with_packed(hyper: dict[str, Any], like: Any) -> dict[str, Any]:
    """Return the run-time values for unpacked parameters; the loss function is called with packed ones."""
    if FUNCTION not in hyper:
        return hyper
    run = hyper[FUNCTION]

    def inside(floats: list[Any], unflatten: Any, flatten: Any) -> Any:
        return run(floats, lambda x: like.like(unflatten(x)), lambda grads: flatten(unpacked(grads)))

    return hyper | {FUNCTION: Partial(inside)}


def evaluation(run: Any, layout: Layout, stored: list[Any], read: Callable[..., Any]) -> Evaluate:
    """Return a function that evaluates the loss and its gradients at points, in the dtypes of the parameters.

    A point may be None: the parameter itself. It is one jitted call, which the native engine leaves as it is.

    Args:
        read: converts the loss and its gradients to those of the arithmetic, as the first ones were: sums them over
            devices, divides them by the loss scale.
    """

    def loss_and_gradients(points: list[Any]) -> Any:
        floats = [p if x is None else x.astype(p.dtype) for x, p in zip(points, stored, strict=True)]
        unflatten = lambda x: layout.unflatten(x, layout.frozen_leaves())
        value, grads = run(floats, unflatten, lambda tree: layout.flatten(tree, "the second gradients"))
        return value, grads

    loss_and_gradients.__name__ = LOSS_AND_GRADIENTS
    compiled = jax.jit(loss_and_gradients)
    return lambda points: read(*compiled(points))


def points(core: Any, options: Options, now: Now, layout: Layout, gradients: list[Any], *rest: Any) -> Any:
    """Return where second gradients are taken (None without gradient), whether this update needs them, and the rest.

    Args:
        rest: arrays, slots and scalars, as they are stored.

    Returns:
        The points, the flag, and the arguments of `core.seen`.
    """
    stored, slots, scalars = rest
    now = own_counts.started(now, [s.get(OWN_COUNT) for s in slots])
    wide = [dequantized(options, Stored(p, s), g) for p, s, g in zip(stored, slots, gradients, strict=True)]
    everything = layout, gradients, [p for p, _ in wide], [s for _, s in wide], scalars, now
    return *core.look(*everything), everything


def with_second(
    core: Any,
    options: Options,
    now: Now,
    layout: Layout,
    gradients: list[Any],
    *rest: Any,
    evaluate: Evaluate,
) -> tuple[list[Any], list[Any]]:
    """Return the gradients of the update, and the second ones.

    Args:
        rest: as in `points`.
        evaluate: returns the loss and its gradients at points.
    """
    found, wanted, (*everything, now) = points(core, options, now, layout, gradients, *rest)

    def look() -> list[Any]:
        _, second = evaluate(found)
        return [jnp.zeros(()) if g is None else h for g, h in zip(gradients, second, strict=True)]

    def none() -> list[Any]:
        return [jnp.zeros(()) if g is None else jnp.zeros_like(g) for g in gradients]

    second = look() if wanted is True else jax.lax.cond(wanted, look, none)
    return core.seen(*everything, now._replace(second=second)), second
