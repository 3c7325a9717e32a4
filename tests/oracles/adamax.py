"""Adamax (Kingma & Ba 2014, arXiv:1412.6980, section 7.1).

    m' = b1 m + (1 - b1) g

    keras:  u' = max(b2 u, |g|)             p' = p - lr m' / ((1 - b1^t) (u' + eps))
    optax:  u' = max(b2 u, |g| + eps)       p' = p - lr m' / ((1 - b1^t) u')

Keras adds epsilon to the norm when it divides, optax keeps it inside the maximum. Decay is decoupled in both
(`optax.adamaxw`).
"""

import numpy as np


def init(p, **_):
    return {"momentum": np.zeros_like(p), "norm": np.zeros(np.shape(p))}


def update(g, p, s, t, lr, *, wd=None, variant="keras", path="", beta_1=0.9, beta_2=0.999, epsilon=1e-7, **_):
    if wd is not None:
        p = p * (1 - lr * wd)
    m = beta_1 * s["momentum"] + (1 - beta_1) * g
    if variant == "optax":
        u = np.maximum(beta_2 * s["norm"], np.abs(g) + epsilon)
        denominator = u
    else:
        u = np.maximum(beta_2 * s["norm"], np.abs(g))
        denominator = u + epsilon
    return p - lr * m / ((1 - beta_1**t) * denominator), {"momentum": m, "norm": u}
