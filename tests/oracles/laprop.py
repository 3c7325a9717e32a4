"""LaProp (Liu, Wang & Ueda 2020, arXiv:2002.04839, Algorithm 1): Adam's normalization inside the momentum.

    v' = b2 v + (1 - b2) g^2,   m' = b1 m + (1 - b1) lr g / (sqrt(v' / (1 - b2^t)) + eps),   p' = p - m' / (1 - b1^t)

Decay is decoupled, p <- p (1 - lr wd) before.
"""

import numpy as np


def init(p, **_):
    return {"momentum": np.zeros_like(p), "velocity": np.zeros(np.shape(p))}


def update(g, p, s, t, lr, *, wd=None, variant="authors", path="", beta_1=0.9, beta_2=0.999, epsilon=1e-15, **_):
    if wd is not None:
        p = p * (1 - lr * wd)
    v = beta_2 * s["velocity"] + (1 - beta_2) * np.abs(g) ** 2
    m = beta_1 * s["momentum"] + (1 - beta_1) * lr * g / (np.sqrt(v / (1 - beta_2**t)) + epsilon)
    return p - m / (1 - beta_1**t), {"momentum": m, "velocity": v}
