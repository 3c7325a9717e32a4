"""Adadelta (Zeiler 2012, arXiv:1212.5701).

    a' = rho a + (1 - rho) |g|^2
    u  = sqrt(d + eps) g / sqrt(a' + eps)
    d' = rho d + (1 - rho) |u|^2
    p' = p - lr u

Keras decays the parameter first (decoupled), optax adds the decay to the gradient: g <- g + wd p (coupled, no rate).
"""

import numpy as np


def init(p, **_):
    return {"accumulated_grad": np.zeros(np.shape(p)), "accumulated_delta_var": np.zeros(np.shape(p))}


def update(g, p, s, t, lr, *, wd=None, variant="keras", path="", rho=0.95, epsilon=1e-7, **_):
    if wd is not None and variant == "optax":
        g = g + wd * p
    elif wd is not None:
        p = p * (1 - lr * wd)
    a = rho * s["accumulated_grad"] + (1 - rho) * np.abs(g) ** 2
    u = np.sqrt(s["accumulated_delta_var"] + epsilon) * g / np.sqrt(a + epsilon)
    d = rho * s["accumulated_delta_var"] + (1 - rho) * np.abs(u) ** 2
    return p - lr * u, {"accumulated_grad": a, "accumulated_delta_var": d}
