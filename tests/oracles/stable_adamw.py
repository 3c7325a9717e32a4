"""StableAdamW (Wortsman et al. 2023, arXiv:2304.13013), as in torch-optimi: debiased decays.

c_i = b_i (1 - b_i^(t-1)) / (1 - b_i^t)
m' = c_1 m + (1 - c_1) g,   v' = c_2 v + (1 - c_2) g^2
r  = lr / max(1, sqrt(mean(g^2 / max(v', eps^2))))
p' = p - r (m' / (sqrt(v') + eps) + wd p)
"""

import numpy as np


def init(p, **_):
    return {"momentum": np.zeros_like(p), "velocity": np.zeros(np.shape(p))}


def update(g, p, s, t, lr, *, wd=None, variant="authors", path="", beta_1=0.9, beta_2=0.99, epsilon=1e-6, **_):
    c1, c2 = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in (beta_1, beta_2))
    m = c1 * s["momentum"] + (1 - c1) * g
    v = c2 * s["velocity"] + (1 - c2) * np.abs(g) ** 2
    ratio = np.abs(g) ** 2 / np.maximum(v, epsilon**2)
    rms = np.sqrt(np.mean(ratio)) if np.size(ratio) else 0.0
    rate = lr / max(1, rms)
    return p - rate * (m / (np.sqrt(v) + epsilon) + (0 if wd is None else wd * p)), {"momentum": m, "velocity": v}
