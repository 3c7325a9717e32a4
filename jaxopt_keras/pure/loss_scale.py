"""Dynamic loss scaling of the pure face, for training in float16."""

from typing import Any

from jaxopt_keras.engine.programs.loss_scaled import LossScaled
from jaxopt_keras.engine.programs.offloaded import outermost
from jaxopt_keras.language.rule import Amount, Count, Field
from jaxopt_keras.pure.kernel import Kernel

LOWEST, HIGHEST = 1.0, 2.0**24
AMOUNT, COUNT = Field.read(Amount), Field.read(Count)


def checked_settings(initial_scale: Any, growth: Any, lowest: Any, highest: Any) -> tuple[float, int, float, float]:
    """The settings of dynamic loss scaling as plain numbers.

    Raises:
        TypeError: if one is no number. ValueError: if they are out of range, or out of order.
    """
    initial = AMOUNT.check("initial_scale", initial_scale)
    low, high = AMOUNT.check("lowest_scale", lowest), AMOUNT.check("highest_scale", highest)
    count = COUNT.check("dynamic_growth_steps", growth)
    if not 0 < low <= initial <= high:
        raise ValueError(
            "The scales must be in the order 0 < `lowest_scale` <= `initial_scale` <= `highest_scale`. Received: "
            f"lowest_scale={lowest}, initial_scale={initial_scale}, highest_scale={highest}"
        )
    if count < 1:
        raise ValueError(f"`dynamic_growth_steps` must be an integer >= 1. Received: dynamic_growth_steps={growth}")
    return initial, count, low, high


def loss_scaled(
    kernel: Kernel,
    initial_scale: float = 2.0**15,
    dynamic_growth_steps: int = 2000,
    *,
    lowest_scale: float = LOWEST,
    highest_scale: float = HIGHEST,
) -> Kernel:
    """`kernel`, on gradients of a loss that was multiplied by a scale which finds itself (as Keras's and AMP's).

    The kernel divides gradients by the scale. If they are not finite, nothing moves but the counter `skipped`, on any
    device or in any group, and the scale is halved; after so many good calls in a row it is doubled.

    Args:
        kernel: any kernel, a partition too, but not one that is loss-scaled already.
        initial_scale: to start with.
        dynamic_growth_steps: good calls from one doubling to the next.
        lowest_scale, highest_scale: the scale stays within them.

    >>> import jax, jax.numpy as jnp, jaxopt_keras as jk
    >>> kernel = jk.loss_scaled(jk.sgd(0.5), initial_scale=1024.0)
    >>> params = jnp.ones(2, jnp.float16)
    >>> state = kernel.init(params)
    >>> grads = jax.grad(lambda p: kernel.scale_loss(jnp.sum(p * p), state))(params)
    >>> params, state = kernel.step(params, state, grads)
    >>> params.tolist(), float(state.scalars["dynamic_scale"])
    ([0.0, 0.0], 1024.0)

    Raises:
        TypeError: if `kernel` is none, or a setting is no number. ValueError: if a setting is out of its range.
    """
    if not isinstance(kernel, Kernel):
        raise TypeError(f"`kernel` must be a kernel, such as `jaxopt_keras.adam()`. Received: kernel={kernel!r}")
    settings = checked_settings(initial_scale, dynamic_growth_steps, lowest_scale, highest_scale)
    if _is_scaled(kernel.program):
        raise ValueError(f"`kernel` has a loss scale already. Received: kernel={kernel!r}")
    return Kernel(outermost(kernel.program, lambda inner: LossScaled(inner, *settings)))


def _is_scaled(program: Any) -> bool:
    return isinstance(program, LossScaled) or any(map(_is_scaled, program.children))
