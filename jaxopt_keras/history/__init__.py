"""What a training run did: rate, norms of gradients and updates, skipped steps; as CSV, TensorBoard and a picture.

Measuring happens inside the compiled step, and nothing waits for it: `measured_step` in the pure face (`measure` in a
loop with other transformations), `History.apply_gradients` in the stateful one. `History` collects and writes.

>>> import jax, jax.numpy as jnp, jaxopt_keras as jk
>>> kernel, params = jk.adam(0.1), {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}
>>> state, history = kernel.init(params), jk.history.History()
>>> for _ in range(3):
...     grads = jax.grad(lambda p: jnp.sum(p["kernel"] ** 2) + jnp.sum((p["bias"] - 1) ** 2))(params)
...     params, state, seen = jk.history.measured_step(kernel, params, state, grads)
...     history.append(seen)
>>> history["step"].tolist(), history["gradient_norm"].round(2).tolist()
([1, 2, 3], [4.9, 4.41, 3.92])
"""

from jaxopt_keras.history.measures import measure as measure
from jaxopt_keras.history.measures import measured_step as measured_step
from jaxopt_keras.history.record import History as History
