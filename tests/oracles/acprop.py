"""ACProp (Zhuang et al. 2021, arXiv:2110.05454), as optax 0.2.8 has it, with one epsilon for both of its own.

p' = p (1 - lr wd) - lr g / (sqrt(v / (1 - b2^{t-1})) + eps),  at t = 1 over 1 + eps
v' = b2 v + (1 - b2) (g - m)^2 + eps,   m' = b1 m + (1 - b1) g
"""

import numpy as np


def init(p, **_):
    return {"momentum": np.zeros_like(p), "variance": np.zeros(np.shape(p))}


def update(g, p, s, t, lr, *, wd=None, beta_1=0.9, beta_2=0.999, epsilon=1e-16, **_):
    if wd is not None:
        p = p * (1 - lr * wd)
    m = s["momentum"]
    size = 1 if t == 1 else np.sqrt(s["variance"] / (1 - beta_2 ** (t - 1)))
    v = beta_2 * s["variance"] + (1 - beta_2) * np.abs(g - m) ** 2 + epsilon
    return p - lr * g / (size + epsilon), {"momentum": beta_1 * m + (1 - beta_1) * g, "variance": v}
