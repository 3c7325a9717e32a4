"""Signum (Bernstein et al. 2018, arXiv:1802.04434): m' = b m + (1 - b) g,  p' = p - lr sign(m'). Decay is decoupled."""

import numpy as np


def init(p, **_):
    return {"momentum": np.zeros_like(p)}


def update(g, p, s, t, lr, *, wd=None, variant="authors", path="", momentum=0.9, **_):
    if wd is not None:
        p = p * (1 - lr * wd)
    m = momentum * s["momentum"] + (1 - momentum) * g
    return p - lr * np.sign(m), {"momentum": m}
