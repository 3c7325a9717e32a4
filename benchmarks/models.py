"""The perceptron of the train step: in JAX, and its gradient in float64 NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.problem import Batch


def loss(params: dict[str, Any], batch: Batch) -> jax.Array:
    """Return the mean cross-entropy."""
    x, layers = batch.x, len(params) // 2
    for i in range(layers):
        x = x @ params[f"dense{i}/kernel"] + params[f"dense{i}/bias"][None, :]
        x = jnp.tanh(x) if i < layers - 1 else x
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(x), batch.y[:, None], axis=1))


def gradient(params: dict[str, Any], batch: Batch) -> dict[str, Any]:
    """Return the gradient of `loss`, in float64."""
    layers, inputs = len(params) // 2, [np.asarray(batch.x, np.float64)]
    for i in range(layers):
        x = inputs[-1] @ params[f"dense{i}/kernel"] + params[f"dense{i}/bias"]
        inputs.append(np.tanh(x) if i < layers - 1 else x)
    logits = inputs.pop()
    d = np.exp(logits - logits.max(axis=1, keepdims=True))
    d /= d.sum(axis=1, keepdims=True)
    d[np.arange(len(d)), batch.y] -= 1
    d /= len(d)
    grads = {}
    for i in reversed(range(layers)):
        grads |= {f"dense{i}/kernel": inputs[i].T @ d, f"dense{i}/bias": d.sum(axis=0)}
        d = (d @ params[f"dense{i}/kernel"].T) * (1 - inputs[i] ** 2)
    return grads
