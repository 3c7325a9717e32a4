"""MADGRAD (Defazio & Jelassi 2021, arXiv:2101.11075; facebookresearch/madgrad).

    g <- g + wd p,   l = (lr + eps) sqrt(t)
    s' = s + l g,   q' = q + l g^2,   z = p0 - s' / (q'^(1/3) + eps),   p' = mu p + (1 - mu) z

The slot `root` is sqrt(q).
"""

import numpy as np

telling = {"epsilon": 0.01}


def init(p, **_):
    return {"sum": np.zeros_like(p), "root": np.zeros_like(p), "start": np.array(p)}


def update(g, p, s, t, lr, *, wd=None, variant="authors", path="", momentum=0.9, epsilon=1e-6, **_):
    if wd is not None:
        g = g + wd * p
    weight = (lr + epsilon) * np.sqrt(t)
    total = s["sum"] + weight * g
    squares = s["root"] ** 2 + weight * g**2
    z = s["start"] - total / (np.cbrt(squares) + epsilon)
    return momentum * p + (1 - momentum) * z, {"sum": total, "root": np.sqrt(squares), "start": s["start"]}
