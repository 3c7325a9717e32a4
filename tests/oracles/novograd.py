"""NovoGrad (Ginsburg et al. 2019, arXiv:1905.11286, Algorithm 1).

N' = |g|^2 at t = 1, else b2 N + (1 - b2) |g|^2         one number; the slot `norm` is its root
m' = b1 m + g / (sqrt(N') + eps) + wd p,   p' = p - lr m'
"""

import numpy as np


def init(p, **_):
    return {"momentum": np.zeros_like(p), "norm": np.zeros(())}


def update(g, p, s, t, lr, *, wd=None, variant="authors", path="", beta_1=0.95, beta_2=0.98, epsilon=1e-8, **_):
    square = np.sum(np.abs(g) ** 2)
    if t > 1:
        square = beta_2 * s["norm"] ** 2 + (1 - beta_2) * square
    m = beta_1 * s["momentum"] + g / (np.sqrt(square) + epsilon) + (0 if wd is None else wd * p)
    return p - lr * m, {"momentum": m, "norm": np.sqrt(square)}
