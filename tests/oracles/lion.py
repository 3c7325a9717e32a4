"""Lion (Chen et al. 2023, arXiv:2302.06675).

    p' = p - lr sign(b1 m + (1 - b1) g)
    m' = b2 m + (1 - b2) g

Keras and optax agree, decoupled decay included.
"""

import numpy as np


def init(p, **_):
    return {"momentum": np.zeros_like(p)}


def update(g, p, s, t, lr, *, wd=None, variant="keras", path="", beta_1=0.9, beta_2=0.99, **_):
    if wd is not None:
        p = p * (1 - lr * wd)
    m = s["momentum"]
    p = p - lr * np.sign(beta_1 * m + (1 - beta_1) * g)
    return p, {"momentum": beta_2 * m + (1 - beta_2) * g}
