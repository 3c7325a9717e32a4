"""Simplified AdEMAMix (Morwani et al. 2025, arXiv:2502.02431), as optax 0.2.8 has it.

m' = b1 m + g,   v' = b2 v + (1 - b2) g^2
p' = p (1 - lr wd) - lr (m' + alpha g) / (sqrt(v' / (1 - b2^t)) + eps)
"""

import numpy as np

telling = pinned = {"alpha": 2.0}  # without it the gradient has no weight of its own


def init(p, **_):
    return {"momentum": np.zeros_like(p), "velocity": np.zeros(np.shape(p))}


def update(g, p, s, t, lr, *, wd=None, beta_1=0.99, beta_2=0.95, alpha=0.0, epsilon=1e-8, **_):
    if wd is not None:
        p = p * (1 - lr * wd)
    m = beta_1 * s["momentum"] + g
    v = beta_2 * s["velocity"] + (1 - beta_2) * np.abs(g) ** 2
    return p - lr * (m + alpha * g) / (np.sqrt(v / (1 - beta_2**t)) + epsilon), {"momentum": m, "velocity": v}
