"""Dynamic loss scaling of the pure face, for training in float16."""

from typing import Any

from jaxopt_keras.engine.programs.loss_scaled import LossScaled
from jaxopt_keras.engine.programs.offloaded import outermost
from jaxopt_keras.language.rule import Amount, Count, Field
from jaxopt_keras.pure.arguments import check_kernel
from jaxopt_keras.pure.kernel import Kernel

LOWEST, HIGHEST = 1.0, 2.0**24
AMOUNT, COUNT = Field.read(Amount), Field.read(Count)


def checked_settings(initial_scale: Any, growth: Any, lowest: Any, highest: Any) -> tuple[float, int, float, float]:
    """Validates the settings of dynamic loss scaling, and returns them as plain numbers.

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
    """`kernel` with dynamic loss scaling, as in Keras and AMP.

    The gradients are those of `kernel.scale_loss(loss, state)`; the kernel divides them by the scale. If they are not
    finite on any device or in any group, the step is skipped, `skipped` counts it, and the scale is halved. After
    `dynamic_growth_steps` finite calls in a row the scale is doubled.

    Args:
        kernel: any kernel without loss scaling, a partition too.
        initial_scale: the first scale, a positive number. Default: 2**15.
        dynamic_growth_steps: finite calls before the scale is doubled, an integer >= 1. Default: 2000.
        lowest_scale, highest_scale: the bounds of the scale. Defaults: 1 and 2**24.

    >>> import jax, jax.numpy as jnp, jaxopt_keras as jk
    >>> kernel = jk.loss_scaled(jk.sgd(0.5), initial_scale=1024.0)
    >>> params = jnp.ones(2, jnp.float16)
    >>> state = kernel.init(params)
    >>> grads = jax.grad(lambda p: kernel.scale_loss(jnp.sum(p * p), state))(params)
    >>> params, state = kernel.step(params, state, grads)
    >>> params.tolist(), float(state.scalars["dynamic_scale"])
    ([0.0, 0.0], 1024.0)

    Raises:
        TypeError: if `kernel` is no kernel, or a setting is no number. ValueError: if a setting is out of its range.
    """
    check_kernel("kernel", kernel)
    settings = checked_settings(initial_scale, dynamic_growth_steps, lowest_scale, highest_scale)
    if _is_scaled(kernel.program):
        raise ValueError(f"`kernel` must have no loss scale already. Received: kernel={kernel!r}")
    return Kernel(outermost(kernel.program, lambda inner: LossScaled(inner, *settings)))


def _is_scaled(program: Any) -> bool:
    return isinstance(program, LossScaled) or any(map(_is_scaled, program.children))
