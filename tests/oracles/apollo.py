"""APOLLO (Zhu et al. 2024, arXiv:2412.05270; apollo-torch 1.0.3), for matrices of (in, out).

    after every k updates, from the first on:  P = normal numbers / sqrt(r), r for each index of the shorter side
    h = P^T g or g P;   m' = b1 m + (1 - b1) h,  v' = b2 v + (1 - b2) h^2,  n = m' / (sqrt(v') + eps)
    u = g |n| / (|h| + 1e-8), norms over the projected axis, or over the array;  (scale_front: u <- sqrt(scale) u)
    after a step that is not 0:  l = max(|u| / (q + 1e-8), 1.01) / 1.01,  u <- u / l;   q' = |u|
    p' = (p - lr sqrt(1 - b2^t) / (1 - b1^t) sqrt(scale) u) (1 - lr wd)

proj="svd": P as in `galore`. Other arrays: Adam.
"""

import numpy as np

from . import galore
from .loop import probe

telling, pinned = galore.telling, galore.pinned


def init(p, *, rank=256, proj_type="std", disable_nl=False, **_):
    s = galore.init(p, rank=rank, proj_type=proj_type)
    return s if disable_nl or "projector" not in s else s | {"length": np.zeros(())}


def update(
    g,
    p,
    s,
    t,
    lr,
    *,
    wd=None,
    variant="authors",
    path="",
    beta_1=0.9,
    beta_2=0.999,
    epsilon=1e-6,
    rank=256,
    update_proj_gap=200,
    scale=1.0,
    proj_type="std",
    scale_type="channel",
    proj="random",
    scale_front=False,
    disable_nl=False,
    **_,
):
    axis, new, h = galore.side(p, "authors", proj_type), dict(s), g
    if axis is not None:
        if (t - 1) % update_proj_gap == 0:
            r = min(rank, *p.shape)
            random = lambda: probe(path, t, (p.shape[0], r) if axis == 0 else (r, p.shape[1])) / np.sqrt(r)
            new["projector"] = random() if proj == "random" else galore.directions(g, axis, rank)
        h = new["projector"].T @ g if axis == 0 else g @ new["projector"].T
    m = new["momentum"] = beta_1 * s["momentum"] + (1 - beta_1) * h
    v = new["velocity"] = beta_2 * s["velocity"] + (1 - beta_2) * h**2
    u = n = m / (np.sqrt(v) + epsilon)
    if axis is not None:
        over = axis if scale_type == "channel" else None
        lengths = [np.sqrt(np.sum(x**2, over, keepdims=True)) for x in (n, h)]
        u = g * lengths[0] / (lengths[1] + 1e-8) * (np.sqrt(scale) if scale_front else 1)
        if not disable_nl:
            limit = max(np.linalg.norm(u) / (s["length"] + 1e-8), 1.01) / 1.01 if s["length"] else 1
            u = u / limit
            new["length"] = np.linalg.norm(u) or s["length"]
        u = u * (1 if scale_front else np.sqrt(scale))
    p = p - lr * np.sqrt(1 - beta_2**t) / (1 - beta_1**t) * u
    return (p if wd is None else p * (1 - lr * wd)), new
