"""A user of torch: modules with parameters, groups with rates of their own, a scheduler, a state that is kept."""

import jax.numpy as jnp
import numpy as np

import jaxopt_keras as jk
from jaxopt_keras import checkpoint
from tests.arrivals.data import FIRST, SECOND, STEPS, X, Y


class Linear:
    def __init__(self, weight, name):
        self.weight = jk.Variable(weight, name=f"{name}/weight")
        self.bias = jk.Variable(np.zeros(weight.shape[1], np.float32), name=f"{name}/bias")

    def __call__(self, x):
        return x @ self.weight.value + self.bias.value


class Net:
    def __init__(self):
        self.first, self.second = Linear(FIRST, "first"), Linear(SECOND, "second")
        self.parameters = [v for layer in (self.first, self.second) for v in (layer.weight, layer.bias)]

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


def make_optimizer():
    """In torch: two `param_groups`, one without decay and with a rate of its own, and a `CosineAnnealingLR`."""
    adamw = {"epsilon": 1e-8, "variant": "optax"}
    slow = jk.Adam(1e-3, **adamw)
    rate = jk.schedules.CosineDecay(1e-2, STEPS)
    return jk.MultiOptimizer(jk.OptimizerMap(jk.AdamW(rate, weight_decay=0.1, **adamw), {"bias$": slow}))


def theirs():
    """Return the same by torch's formulas in NumPy, in float64."""
    params = [FIRST.astype(float), np.zeros(16), SECOND.astype(float), np.zeros(1)]
    m, v = [np.zeros_like(p) for p in params], [np.zeros_like(p) for p in params]
    for t in range(1, STEPS + 1):
        hidden = np.tanh(X @ params[0] + params[1])
        error = 2 * (hidden @ params[2] + params[3] - Y) / len(X)
        inner = error @ params[2].T * (1 - hidden**2)
        grads = [X.T @ inner, inner.sum(0), hidden.T @ error, error.sum(0)]
        cosine = 1e-2 * 0.5 * (1 + np.cos(np.pi * (t - 1) / STEPS))
        for i, g in enumerate(grads):
            rate, decay = (1e-3, 0.0) if i % 2 else (cosine, 0.1)
            m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g**2
            step = m[i] / (1 - 0.9**t) / (np.sqrt(v[i] / (1 - 0.999**t)) + 1e-8)
            params[i] = params[i] * (1 - rate * decay) - rate * step
    return params


def main(folder):
    net, optimizer = Net(), make_optimizer()

    def loss(x, y):
        return jnp.mean((net(x) - y) ** 2)

    for i in range(STEPS):
        if i == STEPS // 2:  # state_dict, load_state_dict
            checkpoint.save(folder / "optimizer.safetensors", optimizer)
            optimizer = make_optimizer()
            optimizer.build(net.parameters)
            checkpoint.load(folder / "optimizer.safetensors", optimizer)
        _, grads = jk.value_and_grad(loss, net.parameters, X, Y)
        optimizer.apply_gradients(zip(grads, net.parameters, strict=True))
    return [v.numpy() for v in net.parameters], theirs()
