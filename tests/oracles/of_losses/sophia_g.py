"""Sophia-G (Liu et al. 2023, arXiv:2305.14342; the authors' sophia.py and train_sophiag.py).

m' = b1 m + (1 - b1) g
h' = b2 h + (1 - b2) q^2        after every k-th update, q the gradient on sampled labels at the new parameters
p' = p (1 - lr wd) - lr sign(m') min(|m'| / (rho bs h + 1e-15), 1)
"""

import numpy as np


def init(p, **_):
    return {"momentum": np.zeros_like(p), "hessian": np.zeros_like(p)}


def update(g, p, s, t, lr, *, wd=None, beta_1=0.965, rho=0.04, bs=5120.0, **_):
    p = p if wd is None else p * (1 - lr * wd)
    m = beta_1 * s["momentum"] + (1 - beta_1) * g
    step = np.sign(m) * np.minimum(np.abs(m) / (rho * bs * s["hessian"] + 1e-15), 1)
    return p - lr * step, s | {"momentum": m}


def after(q, s, t, *, beta_2=0.99, hess_interval=10, **_):
    """The slots after an update, q the second gradient at the new parameters."""
    if t % hess_interval:
        return s
    return s | {"hessian": beta_2 * s["hessian"] + (1 - beta_2) * q**2}
