"""MARS-AdamW (Yuan et al. 2024, arXiv:2411.10438; AGI-Arena/MARS, `is_approx=True`).

A matrix:
    c  = g + gamma b1 / (1 - b1) (g - h),  h = 0 at t = 1;   c <- c / |c| if |c| > 1;   h' = g
    m' = b1 m + (1 - b1) c,   v' = b2 v + (1 - b2) c^2
    p' = p - lr (wd p + m' / (1 - b1^t) / (sqrt(v' / (1 - b2^t)) + eps))
Any other array: AdamW with `adam_beta_1`, `adam_beta_2`, `adam_weight_decay`, at the rate lr adam_lr_ratio.
"""

import numpy as np


def init(p, **_):
    s = {"momentum": np.zeros_like(p), "velocity": np.zeros(np.shape(p))}
    return s | ({"gradient": np.zeros_like(p)} if np.ndim(p) == 2 else {})


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
    beta_1=0.95,
    beta_2=0.99,
    epsilon=1e-8,
    gamma=0.025,
    adam_beta_1=0.9,
    adam_beta_2=0.95,
    adam_weight_decay=0.1,
    adam_lr_ratio=1.0,
    **_,
):
    new = {}
    if np.ndim(p) == 2:
        new["gradient"] = g
        g = g + gamma * beta_1 / (1 - beta_1) * (g - s["gradient"])
        size = np.sqrt(np.sum(np.abs(g) ** 2))
        g = g / size if size > 1 else g
    else:
        beta_1, beta_2, wd, lr = adam_beta_1, adam_beta_2, adam_weight_decay, lr * adam_lr_ratio
    m = beta_1 * s["momentum"] + (1 - beta_1) * g
    v = beta_2 * s["velocity"] + (1 - beta_2) * np.abs(g) ** 2
    u = m / (1 - beta_1**t) / (np.sqrt(v / (1 - beta_2**t)) + epsilon)
    return p - lr * (u + (0 if wd is None else wd * p)), new | {"momentum": m, "velocity": v}
