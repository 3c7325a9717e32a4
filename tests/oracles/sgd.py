"""Stochastic gradient descent with momentum (Polyak 1964; Nesterov 1983).

    keras:  v' = mu v - lr g        p' = p + v'          nesterov:  p' = p + mu v' - lr g
    optax:  v' = mu v + g           p' = p - lr v'       nesterov:  p' = p - lr (mu v' + g)

Keras keeps the learning rate inside the momentum, optax multiplies by the current one after it: equal while the rate
is constant. Decay is decoupled in both (`optax.sgd` has none of its own).
"""

import numpy as np


def init(p, *, momentum=0.0, **_):
    return {"momentum": np.zeros_like(p)} if momentum != 0 else {}


def update(g, p, s, t, lr, *, wd=None, variant="keras", path="", momentum=0.0, nesterov=False, **_):
    if wd is not None:
        p = p * (1 - lr * wd)
    if momentum == 0:
        return p - lr * g, {}
    if variant == "optax":
        v = momentum * s["momentum"] + g
        step = -lr * (momentum * v + g) if nesterov else -lr * v
    else:
        v = momentum * s["momentum"] - lr * g
        step = momentum * v - lr * g if nesterov else v
    return p + step, {"momentum": v}
