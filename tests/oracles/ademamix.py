"""AdEMAMix (Pagliardini et al. 2024, arXiv:2409.03137; apple/ml-ademamix).

    m' = b1 m + (1 - b1) g,   s' = b s + (1 - b) g,   v' = b2 v + (1 - b2) g^2
    u  = (m' / (1 - b1^t) + a s') / (sqrt(v' / (1 - b2^t)) + eps)
    p' = p - lr (u + wd p)

Warm-up over T updates, for t < T: a = alpha t / T, and b from f(b) = (1 - t / T) f(b1) + (t / T) f(b3), where
f(x) = ln(1/2) / ln(x + 1e-8) - 1 is the half-life; its inverse is (1/2)^(1 / (f + 1)).
"""

import numpy as np


def init(p, **_):
    return {"momentum": np.zeros_like(p), "slow_momentum": np.zeros_like(p), "velocity": np.zeros(np.shape(p))}


def half_life(beta):
    return np.log(0.5) / np.log(beta + 1e-8) - 1


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
    beta_3=0.9999,
    alpha=2.0,
    beta3_warmup=None,
    alpha_warmup=None,
    epsilon=1e-8,
    **_,
):
    if alpha_warmup and t < alpha_warmup:
        alpha = alpha * t / alpha_warmup
    slow = beta_3
    if beta3_warmup and t < beta3_warmup:
        part = t / beta3_warmup
        slow = 0.5 ** (1 / ((1 - part) * half_life(beta_1) + part * half_life(beta_3) + 1))
    m = beta_1 * s["momentum"] + (1 - beta_1) * g
    ms = slow * s["slow_momentum"] + (1 - slow) * g
    v = beta_2 * s["velocity"] + (1 - beta_2) * np.abs(g) ** 2
    u = (m / (1 - beta_1**t) + alpha * ms) / (np.sqrt(v / (1 - beta_2**t)) + epsilon)
    return p - lr * (u + (0 if wd is None else wd * p)), {"momentum": m, "slow_momentum": ms, "velocity": v}
