"""Schedule-free AdamW (Defazio et al. 2024, arXiv:2405.15682). The parameter is y, the slot `momentum` z = y at first.

    v' = b2 v + (1 - b2) g^2
    u  = g / (sqrt(v' / (1 - b2^t) + eps_root) + eps)
    x  = (y - (1 - b1) z) / b1

    keras:  y <- y (1 - lr wd) before x,   lr_t = lr min(t / warmup, 1),   z' = z - lr_t u,           c = 1 / t
    optax:  z' = z - lr min((t - 1) / warmup, 1) (u + wd y),   M' = max(M, lr min(t / warmup, 1)),    W' = W + M'^2,
            c = M'^2 / W'   (0 if W' = 0)

    x' = (1 - c) x + c z'
    y' = (1 - b1) z' + b1 x'

Keras averages with equal weights, starts the warm-up at 1/warmup and decays y alone, which x then inherits; optax
weighs by the squared largest rate so far, starts the steps (not the weights) of the warm-up at 0 and decays through z.
M and W are the slots `max_lr` and `weight_sum`. Under a schedule optax takes M' from the rate of the next update; here
it is this one's.
"""

import numpy as np


def init(p, *, variant="keras", **_):
    s = {"momentum": np.array(p), "velocity": np.zeros(np.shape(p))}
    if variant == "optax":
        s["max_lr"] = np.zeros(())
        s["weight_sum"] = np.zeros(())
    return s


def update(
    g,
    p,
    s,
    t,
    lr,
    *,
    wd=None,
    variant="keras",
    path="",
    beta_1=0.9,
    beta_2=0.999,
    epsilon=1e-8,
    warmup_steps=0,
    eps_root=0.0,
    **_,
):
    warm_now = min(t / warmup_steps, 1.0) if warmup_steps else 1.0
    warm_before = min((t - 1) / warmup_steps, 1.0) if warmup_steps else 1.0
    y, z = p, s["momentum"]
    v = beta_2 * s["velocity"] + (1 - beta_2) * g**2
    u = g / (np.sqrt(v / (1 - beta_2**t) + eps_root) + epsilon)
    new = {"velocity": v}
    if variant == "optax":
        x = (y - (1 - beta_1) * z) / beta_1
        if wd is not None:
            u = u + wd * y
        z = z - lr * warm_before * u
        max_lr = np.maximum(s["max_lr"], lr * warm_now)
        weight_sum = s["weight_sum"] + max_lr**2
        c = max_lr**2 / weight_sum if weight_sum > 0 else 0.0
        new |= {"max_lr": max_lr, "weight_sum": weight_sum}
    else:
        if wd is not None:
            y = y * (1 - lr * wd)
        x = (y - (1 - beta_1) * z) / beta_1
        z = z - lr * warm_now * u
        c = 1 / t
    x = (1 - c) * x + c * z
    new["momentum"] = z
    return (1 - beta_1) * z + beta_1 * x, new
