"""ADOPT (Taniguchi et al. 2024, arXiv:2411.02853; the release with its clipping).

    t = 1:  v' = g^2,  p' = p
    else:   n = g / max(sqrt(v), eps), cut to [-c, c] with c = (t - 1)^(1/4)
            m' = b1 m + (1 - b1) n,   p' = p (1 - lr wd) - lr m',   v' = b2 v + (1 - b2) g^2

In optax weight decay is applied at t = 1 too.
"""

import numpy as np

telling = {"epsilon": 0.5}


def init(p, **_):
    return {"momentum": np.zeros_like(p), "velocity": np.zeros(np.shape(p))}


def update(g, p, s, t, lr, *, wd=None, variant="authors", path="", beta_1=0.9, beta_2=0.9999, epsilon=1e-6, **_):
    if wd is not None and (t > 1 or variant == "optax"):
        p = p * (1 - lr * wd)
    if t == 1:
        return p, {"momentum": s["momentum"], "velocity": g**2}
    c = (t - 1) ** 0.25
    n = g / np.maximum(np.sqrt(s["velocity"]), epsilon)
    n = np.minimum(np.maximum(n, -c), c)
    m = beta_1 * s["momentum"] + (1 - beta_1) * n
    return p - lr * m, {"momentum": m, "velocity": beta_2 * s["velocity"] + (1 - beta_2) * g**2}
