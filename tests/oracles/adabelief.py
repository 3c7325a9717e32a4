"""AdaBelief (Zhuang et al. 2020, arXiv:2010.07468, Algorithm 2).

    m' = b1 m + (1 - b1) g,   v' = b2 v + (1 - b2) (g - m')^2 + eps
    p' = p - lr m' / (1 - b1^t) / (sqrt(v' / (1 - b2^t)) + eps)

Decay is decoupled.
"""

import numpy as np


def init(p, **_):
    return {"momentum": np.zeros_like(p), "variance": np.zeros(np.shape(p))}


def update(g, p, s, t, lr, *, wd=None, variant="authors", path="", beta_1=0.9, beta_2=0.999, epsilon=1e-16, **_):
    if wd is not None:
        p = p * (1 - lr * wd)
    m = beta_1 * s["momentum"] + (1 - beta_1) * g
    v = beta_2 * s["variance"] + (1 - beta_2) * np.abs(g - m) ** 2 + epsilon
    return p - lr * m / (1 - beta_1**t) / (np.sqrt(v / (1 - beta_2**t)) + epsilon), {"momentum": m, "variance": v}
