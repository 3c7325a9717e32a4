"""Optimistic gradient descent (Mokhtari, Ozdaglar & Pattathil 2019, arXiv:1901.08511), as optax 0.2.8 has it.

p' = p (1 - lr wd) - lr (alpha g + beta (g - h)),  h' = g,  h = g at t = 1
"""

import numpy as np


def init(p, **_):
    return {"last_gradient": np.zeros_like(p)}


def update(g, p, s, t, lr, *, wd=None, alpha=1.0, beta=1.0, **_):
    if wd is not None:
        p = p * (1 - lr * wd)
    last = g if t == 1 else s["last_gradient"]
    return p - lr * ((alpha + beta) * g - beta * last), {"last_gradient": g}
