"""Adam-mini (Zhang et al. 2024, arXiv:2406.16793; adam_mini 1.1.1).

    m' = b1 m + (1 - b1) g;   v' = b2 v + (1 - b2) mean of g^2 over the block
    p' = p - lr m' / (1 - b1^t) / (sqrt(v' / (1 - b2^t)) + eps)

Blocks: each number of a bias; a scalar or another vector as a whole; each row of an embedding; else each index of the
last axis. Here the parameter's name tells: "bias", "embed". Decay is decoupled.
"""

import numpy as np


def inside(path, p):
    """The axes of one block."""
    axes = tuple(range(np.ndim(p)))
    if "bias" in path or len(axes) < 2:
        return () if "bias" in path else axes
    return axes[1:] if "embed" in path else axes[:-1]


def init(p, *, path="", **_):
    return {"momentum": np.zeros_like(p), "velocity": np.sum(np.zeros_like(p), inside(path, p))}


def update(g, p, s, t, lr, *, wd=None, variant="authors", path="", beta_1=0.9, beta_2=0.999, epsilon=1e-8, **_):
    if wd is not None:
        p = p * (1 - lr * wd)
    axes = inside(path, p)
    m = beta_1 * s["momentum"] + (1 - beta_1) * g
    mean = np.mean(np.abs(g) ** 2, axes) if np.size(g) else s["velocity"]
    v = beta_2 * s["velocity"] + (1 - beta_2) * mean
    h = np.sqrt(v / (1 - beta_2**t)) + epsilon
    return p - lr * m / (1 - beta_1**t) / np.expand_dims(h, axes), {"momentum": m, "velocity": v}
