"""Grams (Cao, Li & Song 2024, arXiv:2412.17107).

    m' = b1 m + (1 - b1) g,   v' = b2 v + (1 - b2) g^2,   u = m' / (1 - b1^t) / (sqrt(v' / (1 - b2^t)) + eps)
    p' = p - lr sign(g) |u|

Decay is decoupled.
"""

import numpy as np


def init(p, **_):
    return {"momentum": np.zeros_like(p), "velocity": np.zeros(np.shape(p))}


def update(g, p, s, t, lr, *, wd=None, variant="authors", path="", beta_1=0.9, beta_2=0.999, epsilon=1e-6, **_):
    if wd is not None:
        p = p * (1 - lr * wd)
    m = beta_1 * s["momentum"] + (1 - beta_1) * g
    v = beta_2 * s["velocity"] + (1 - beta_2) * np.abs(g) ** 2
    size = np.abs(m) / (1 - beta_1**t) / (np.sqrt(v / (1 - beta_2**t)) + epsilon)
    return p - lr * np.sign(g) * size, {"momentum": m, "velocity": v}
