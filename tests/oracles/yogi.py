"""Yogi (Zaheer et al. 2018, Algorithm 2, with Adam's bias corrections).

    m' = b1 m + (1 - b1) g,   v' = v - (1 - b2) sign(v - g^2) g^2,   v = v0 at first
    p' = p - lr m' / (1 - b1^t) / (sqrt(v' / (1 - b2^t)) + eps)

In optax m = v0 at first too. Decay is decoupled.
"""

import numpy as np


def init(p, *, variant="authors", initial_accumulator_value=1e-6, **_):
    v = np.full(np.shape(p), initial_accumulator_value)
    return {"momentum": np.zeros_like(p) + (v if variant == "optax" else 0), "velocity": v}


def update(g, p, s, t, lr, *, wd=None, variant="authors", path="", beta_1=0.9, beta_2=0.999, epsilon=1e-3, **_):
    if wd is not None:
        p = p * (1 - lr * wd)
    m = beta_1 * s["momentum"] + (1 - beta_1) * g
    q = np.abs(g) ** 2
    v = s["velocity"] - (1 - beta_2) * np.sign(s["velocity"] - q) * q
    return p - lr * m / (1 - beta_1**t) / (np.sqrt(v / (1 - beta_2**t)) + epsilon), {"momentum": m, "velocity": v}
