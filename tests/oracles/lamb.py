"""LAMB (You et al. 2019, arXiv:1904.00962).

    m' = b1 m + (1 - b1) g,        mhat = m' / (1 - b1^t)
    v' = b2 v + (1 - b2) |g|^2,    vhat = v' / (1 - b2^t)
    u  = mhat / (sqrt(vhat + eps_root) + eps)

    keras:  p <- p (1 - lr wd),    p' = p - lr |p| / |u| u
    optax:  u <- u + wd p,         p' = p - lr |p| / |u| u

where |p| / |u| is 1 if either norm is 0. Keras decays before and outside the trust ratio, optax (and the paper) inside
it.
"""

import numpy as np


def init(p, **_):
    return {"momentum": np.zeros_like(p), "velocity": np.zeros(np.shape(p))}


def norm(x):
    return np.sqrt(np.sum(np.abs(x) ** 2))


def update(
    g, p, s, t, lr, *, wd=None, variant="keras", path="", beta_1=0.9, beta_2=0.999, epsilon=1e-7, eps_root=0.0, **_
):
    if wd is not None and variant == "keras":
        p = p * (1 - lr * wd)
    m = beta_1 * s["momentum"] + (1 - beta_1) * g
    v = beta_2 * s["velocity"] + (1 - beta_2) * np.abs(g) ** 2
    u = m / (1 - beta_1**t) / (np.sqrt(v / (1 - beta_2**t) + eps_root) + epsilon)
    if wd is not None and variant == "optax":
        u = u + wd * p
    ratio = norm(p) / norm(u) if norm(p) > 0 and norm(u) > 0 else 1.0
    return p - lr * ratio * u, {"momentum": m, "velocity": v}
