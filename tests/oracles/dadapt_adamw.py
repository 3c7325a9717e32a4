"""AdamW with D-Adaptation (Defazio & Mishchenko 2023, arXiv:2301.07733; dadaptation 3.2, optax.contrib.dadapt_adamw).

With d and N kept once, from d0 and 0, and b = sqrt(b2):

    r  = d lr, with bias correction times sqrt(1 - b2^t) / (1 - b1^t): always in optax
    N' = b N + (1 - b) r <g, s / (sqrt(v) + eps)>       (the product over all arrays)
    m' = b1 m + (1 - b1) r g,   v' = b2 v + (1 - b2) g^2,   s' = b s + (1 - b) r g
    D  = N' / ((1 - b) |s'|_1)                          (the norm over all arrays)
    d' = max(d, min(D, growth_rate d))
    p' = p - r wd p - m' / (sqrt(v') + eps)
"""

import numpy as np

telling = {"d0": 0.01}


def rate(d, t, lr, variant, use_bias_correction, beta_1, beta_2):
    corrected = variant == "optax" or use_bias_correction
    return d * lr * (np.sqrt(1 - beta_2**t) / (1 - beta_1**t) if corrected else 1.0)


def init(p, **_):
    return {n: np.zeros_like(p) for n in ("momentum", "velocity", "direction")}


def start(*, d0=1e-6, **_):
    return {"d": d0, "numerator": 0.0, "used": d0}


def advance(
    common, grads, params, slots, t, lr, *, variant="authors", beta_1=0.9, beta_2=0.999, epsilon=1e-8,
    use_bias_correction=False, growth_rate=None, **_,
):  # fmt: skip
    d, b = common["d"], np.sqrt(beta_2)
    r = rate(d, t, lr, variant, use_bias_correction, beta_1, beta_2)
    product, length = 0.0, 0.0
    for name, g in grads.items():
        s = slots[name]
        product += np.sum(g * s["direction"] / (np.sqrt(s["velocity"]) + epsilon))
        length += np.sum(np.abs(b * s["direction"] + (1 - b) * r * g))
    numerator = b * common["numerator"] + (1 - b) * r * product
    found = numerator / ((1 - b) * length) if length else d
    limit = np.inf if growth_rate is None else growth_rate * d
    return {"d": max(d, min(found, limit)), "numerator": numerator, "used": d}


def update(
    g, p, s, t, lr, *, common, wd=None, variant="authors", beta_1=0.9, beta_2=0.999, epsilon=1e-8,
    use_bias_correction=False, **_,
):  # fmt: skip
    b = np.sqrt(beta_2)
    r = rate(common["used"], t, lr, variant, use_bias_correction, beta_1, beta_2)
    m = beta_1 * s["momentum"] + (1 - beta_1) * r * g
    v = beta_2 * s["velocity"] + (1 - beta_2) * g**2
    direction = b * s["direction"] + (1 - b) * r * g
    decay = 0 if wd is None else r * wd * p
    return p - decay - m / (np.sqrt(v) + epsilon), {"momentum": m, "velocity": v, "direction": direction}
