"""LARS (You, Gitman & Ginsburg 2017, arXiv:1708.03888).

u  = g + wd p
l  = k |p| / (|g| + wd |p| + eps)  (authors),   k |p| / (|u| + eps)  (optax),   1 if |p| or the first norm below is 0
v' = mu v + lr l u,   p' = p - v'   (nesterov: p - (mu v' + lr l u))
"""

import numpy as np

telling = pinned = {"trust_coefficient": 0.5}  # with the default steps are lost in the rounding of p


def init(p, **_):
    return {"momentum": np.zeros_like(p)}


def norm(x):
    return np.sqrt(np.sum(np.abs(x) ** 2))


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
    momentum=0.9,
    trust_coefficient=0.001,
    epsilon=1e-8,
    nesterov=False,
    **_,
):
    wd = 0.0 if wd is None else wd
    u = g + wd * p
    slope = norm(u) if variant == "optax" else norm(g)
    trust = 1.0
    if norm(p) > 0 and slope > 0:
        trust = trust_coefficient * norm(p) / (slope + epsilon + (wd * norm(p) if variant == "authors" else 0))
    v = momentum * s["momentum"] + lr * trust * u
    return p - (momentum * v + lr * trust * u if nesterov else v), {"momentum": v}
