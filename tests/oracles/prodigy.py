"""Prodigy (Mishchenko & Defazio 2023, arXiv:2306.06101; prodigyopt 1.1.2, optax.contrib.prodigy).

With d, N and d_max kept once, from d0, 0 and d0, p_0 the initial parameter, b3 = sqrt(b2) unless given:

    r  = d lr, with bias correction times sqrt(1 - b2^t) / (1 - b1^t): always in optax
    N' = b3 N + (d / d0) r <g, p_0 - p>                 (the product over all arrays)
    m' = b1 m + (1 - b1) d g,   v' = b2 v + (1 - b2) d^2 g^2
    s' = b3 s + (d / d0) r g;   `safeguard_warmup`: b3 s + (d / d0) d g
    D  = d_coef N' / |s'|_1                             (the norm over all arrays)
    e  = max(d, D) if d = d0 else d;   d_max' = max(d_max, D);   d' = min(d_max', growth_rate e)
    p' = p - r wd p - r m' / (sqrt(v') + d' eps)

Where |s'|_1 = 0, d stays; the authors' code then returns before the decay, and optax divides by it.
"""

import numpy as np

telling = {"d0": 0.01, "d_coef": 1e3}


def rate(d, t, lr, variant, use_bias_correction, beta_1, beta_2):
    corrected = variant == "optax" or use_bias_correction
    return d * lr * (np.sqrt(1 - beta_2**t) / (1 - beta_1**t) if corrected else 1.0)


def moved(s, g, d, r, d0, beta_2, beta_3, safeguard_warmup):
    b3 = np.sqrt(beta_2) if beta_3 is None else beta_3
    return b3, b3 * s + d / d0 * (d if safeguard_warmup else r) * g


def init(p, **_):
    return {n: np.zeros_like(p) for n in ("momentum", "velocity", "direction")} | {"start": np.array(p)}


def start(*, d0=1e-6, **_):
    return {"d": d0, "d_max": d0, "numerator": 0.0, "used": d0}


def advance(
    common,
    grads,
    params,
    slots,
    t,
    lr,
    *,
    variant="authors",
    beta_1=0.9,
    beta_2=0.999,
    beta_3=None,
    use_bias_correction=False,
    safeguard_warmup=False,
    d0=1e-6,
    d_coef=1.0,
    growth_rate=None,
    **_,
):
    d, d_max = common["d"], common["d_max"]
    r = rate(d, t, lr, variant, use_bias_correction, beta_1, beta_2)
    product, length, b3 = 0.0, 0.0, 0.0
    for name, g in grads.items():
        b3, s = moved(slots[name]["direction"], g, d, r, d0, beta_2, beta_3, safeguard_warmup)
        product += np.sum(g * (slots[name]["start"] - params[name]))
        length += np.sum(np.abs(s))
    numerator = b3 * common["numerator"] + d / d0 * r * product
    if length == 0:
        return {"d": d, "d_max": d_max, "numerator": numerator, "used": d}
    found = d_coef * numerator / length
    first = max(d, found) if d == d0 else d
    d_max = max(d_max, found)
    return {"d": min(d_max, np.inf if growth_rate is None else growth_rate * first), "d_max": d_max,
            "numerator": numerator, "used": d}  # fmt: skip


def update(
    g,
    p,
    s,
    t,
    lr,
    *,
    common,
    wd=None,
    variant="authors",
    beta_1=0.9,
    beta_2=0.999,
    beta_3=None,
    epsilon=1e-8,
    use_bias_correction=False,
    safeguard_warmup=False,
    d0=1e-6,
    **_,
):
    d = common["used"]
    r = rate(d, t, lr, variant, use_bias_correction, beta_1, beta_2)
    m = beta_1 * s["momentum"] + (1 - beta_1) * d * g
    v = beta_2 * s["velocity"] + (1 - beta_2) * (d * g) ** 2
    _, direction = moved(s["direction"], g, d, r, d0, beta_2, beta_3, safeguard_warmup)
    step = m / (np.sqrt(v) + common["d"] * epsilon) + (0 if wd is None else wd * p)
    return p - r * step, {"momentum": m, "velocity": v, "start": s["start"], "direction": direction}
