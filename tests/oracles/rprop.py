"""Rprop (Riedmiller & Braun 1993), without backtracking, as in torch and optax.

same sign as the last gradient: d' = min(d eta+, max);   other sign: d' = max(d eta-, min), and g = 0;   a zero: d' = d
p' = p - d' sign(g),   d is the learning rate at t = 1. Decay is decoupled.

In optax 0.2.8 p' = p - d h, with the sign h and the size d of the update before, and p' = p if the sign has changed.
"""

import numpy as np

telling = {"max_step_size": 0.07, "min_step_size": 0.03}


def init(p, **_):
    return {"direction": np.zeros_like(p), "step_size": np.zeros_like(p)}


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
    eta_minus=0.5,
    eta_plus=1.2,
    min_step_size=1e-6,
    max_step_size=50.0,
    **_,
):
    if wd is not None:
        p = p * (1 - lr * wd)
    g = np.sign(g)
    late = s["step_size"] * s["direction"]
    size = np.full(np.shape(p), lr) if t == 1 else np.array(s["step_size"])
    if t > 1:
        agree = g * s["direction"]
        limit = lambda x: np.minimum(np.maximum(x, min_step_size), max_step_size)
        size = np.where(agree > 0, limit(size * eta_plus), np.where(agree < 0, limit(size * eta_minus), size))
        g, late = np.where(agree < 0, 0.0, g), np.where(agree < 0, 0.0, late)
    return p - (late if variant == "optax" else size * g), {"direction": g, "step_size": size}
