"""Adagrad (Duchi et al. 2011).

    n' = n + |g|^2,   n = initial_accumulator_value at first
    p' = p - lr g / sqrt(n' + eps)

Keras and optax agree (but where n' + eps = 0: NaN in Keras, no step in optax; here NaN). Decay is decoupled in both
(`optax.adagrad` has none of its own).
"""

import numpy as np


def init(p, *, initial_accumulator_value=0.1, **_):
    return {"accumulator": np.full(np.shape(p), float(initial_accumulator_value))}


def update(g, p, s, t, lr, *, wd=None, variant="keras", path="", epsilon=1e-7, **_):
    if wd is not None:
        p = p * (1 - lr * wd)
    n = s["accumulator"] + np.abs(g) ** 2
    return p - lr * g / np.sqrt(n + epsilon), {"accumulator": n}
