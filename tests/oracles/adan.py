"""Adan (Xie et al. 2022, arXiv:2208.06677; sail-sg/Adan). b_i are decays, the paper's are 1 - b_i.

d  = g - h  (0 at t = 1),   h' = g
m' = b1 m + (1 - b1) g,   n' = b2 n + (1 - b2) d,   v' = b3 v + (1 - b3) (g + k d)^2
u  = (m' / (1 - b1^t) + k n' / (1 - b2^t)) / (sqrt(v' / (1 - b3^t) + e) + eps)

authors: k = b2,      e = 0,    p' = (p - lr u) / (1 + lr wd)
optax:   k = 1 - b2,  e = eps,  p' = p - lr (u + wd p)
"""

import numpy as np


def init(p, **_):
    s = {name: np.zeros_like(p) for name in ("momentum", "difference", "gradient")}
    return s | {"velocity": np.zeros(np.shape(p))}


def update(
    g, p, s, t, lr, *, wd=None, variant="authors", path="", beta_1=0.98, beta_2=0.92, beta_3=0.99, epsilon=1e-8, **_
):
    wd = 0.0 if wd is None else wd
    k, e = (1 - beta_2, epsilon) if variant == "optax" else (beta_2, 0.0)
    d = g - (g if t == 1 else s["gradient"])
    m = beta_1 * s["momentum"] + (1 - beta_1) * g
    n = beta_2 * s["difference"] + (1 - beta_2) * d
    v = beta_3 * s["velocity"] + (1 - beta_3) * np.abs(g + k * d) ** 2
    root = np.sqrt(v / (1 - beta_3**t) + e) + epsilon
    u = (m / (1 - beta_1**t) + k * n / (1 - beta_2**t)) / root
    new = p - lr * (u + wd * p) if variant == "optax" else (p - lr * u) / (1 + lr * wd)
    return new, {"momentum": m, "difference": n, "velocity": v, "gradient": g}
