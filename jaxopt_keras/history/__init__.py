"""The history of a training run: rate, norms of gradients and updates, skipped steps; as CSV, TensorBoard and a plot.

Measures are computed inside the compiled step, without waiting for the device: by `measured_step` in the pure face
(`measure`, with other transformations), by `History.apply_gradients` in the stateful face. `History` collects and
writes them.

>>> import jax, jax.numpy as jnp, jaxopt_keras as jk
>>> kernel, params = jk.adam(0.1), {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}
>>> state, history = kernel.init(params), jk.history.History()
>>> for _ in range(3):
...     grads = jax.grad(lambda p: jnp.sum(p["kernel"] ** 2) + jnp.sum((p["bias"] - 1) ** 2))(params)
...     params, state, measures = jk.history.measured_step(kernel, params, state, grads)
...     history.append(measures)
>>> history["step"].tolist(), history["gradient_norm"].round(2).tolist()
([1, 2, 3], [4.9, 4.41, 3.92])
"""

from jaxopt_keras.history.measures import measure as measure
from jaxopt_keras.history.measures import measured_step as measured_step
from jaxopt_keras.history.record import History as History
