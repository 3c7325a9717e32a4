"""QK-clip: what keeps the logits of an attention small where Muon trains it."""

import jax.numpy as jnp
from jax import Array


def qk_clip(
    kernel: Array, largest: Array, *, threshold: float = 100.0, power: float = 0.5, axis: int | None = -2
) -> Array:
    """The kernel of queries or keys, made smaller for the heads whose logits are too large (MuonClip).

        factor = min(1, threshold / largest) ** power,   one for each head

    Call it after a step, on the kernel of the queries and on that of the keys: their product, the logits, gets
    `threshold / largest` as factor. In an attention with rotary and other parts (MLA) the rotary part of the queries
    takes `power=1`, and that of the keys, which heads share, is left alone (Kimi K2, arXiv:2507.20534).

    Args:
        kernel: the weights, with an axis of heads: (inputs, heads, size).
        largest: the largest logit of each head in the last batch, before the softmax: (heads,). Of several devices, the
            maximum.
        threshold: the largest logit that is left alone, more than 0. Default: 100.
        power: the part of the factor that this kernel takes, from 0 to 1. Default: 0.5.
        axis: the axis of heads in `kernel`. Default: -2. None: there is one head, and `largest` is a number.

    Returns:
        An array like `kernel`.

    Raises:
        ValueError: if `largest` does not have one number for each head.

    >>> import jax.numpy as jnp
    >>> qk_clip(jnp.ones((2, 3, 1)), jnp.array([50.0, 100.0, 400.0]))[0].ravel().tolist()
    [1.0, 1.0, 0.5]
    """
    shape = () if axis is None else (kernel.shape[axis],)
    if jnp.shape(largest) != shape:
        raise ValueError(f"`largest` must have one number for each head: {shape}. Received: {jnp.shape(largest)}")
    largest = jnp.asarray(largest, jnp.promote_types(kernel.dtype, jnp.float32))
    factor = (threshold / jnp.maximum(largest, threshold)) ** power
    if axis is not None:
        factor = jnp.expand_dims(factor, [i for i in range(kernel.ndim) if i != axis % kernel.ndim])
    return kernel * factor.astype(kernel.dtype)
