"""Optimistic Adam (Daskalakis et al. 2017, arXiv:1711.00141), as `optax.optimistic_adam_v2` of 0.2.8 has it.

m' = b1 m + (1 - b1) g,   v' = b2 v + (1 - b2) g^2
n = m' / (1 - b1^t),  nesterov: b1 m' / (1 - b1^{t+1}) + (1 - b1) g / (1 - b1^t)
u = n / (sqrt(v' / (1 - b2^t)) + eps),   h = u at t = 1
p' = p (1 - lr wd) - lr ((alpha + beta) u - beta h),   h' = u
"""

import numpy as np


def init(p, **_):
    return {"momentum": np.zeros_like(p), "velocity": np.zeros(np.shape(p)), "last_direction": np.zeros_like(p)}


def update(
    g,
    p,
    s,
    t,
    lr,
    *,
    wd=None,
    beta_1=0.9,
    beta_2=0.999,
    epsilon=1e-8,
    alpha=1.0,
    beta=1.0,
    nesterov=True,
    **_,
):
    if wd is not None:
        p = p * (1 - lr * wd)
    m = beta_1 * s["momentum"] + (1 - beta_1) * g
    v = beta_2 * s["velocity"] + (1 - beta_2) * np.abs(g) ** 2
    n = m / (1 - beta_1**t)
    if nesterov:
        n = beta_1 * m / (1 - beta_1 ** (t + 1)) + (1 - beta_1) * g / (1 - beta_1**t)
    u = n / (np.sqrt(v / (1 - beta_2**t)) + epsilon)
    last = u if t == 1 else s["last_direction"]
    return p - lr * ((alpha + beta) * u - beta * last), {"momentum": m, "velocity": v, "last_direction": u}
