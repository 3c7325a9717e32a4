"""RMSprop (Tieleman & Hinton 2012), optionally centered (Graves 2013, arXiv:1308.0850) and with momentum.

    n' = rho n + (1 - rho) |g|^2
    a' = rho a + (1 - rho) g                 (centered)
    i  = lr g / sqrt(n' - |a'|^2 + eps)      (without a' unless centered; eps inside the root)
    b' = mu b + i,   p' = p - b'             (momentum),   else   p' = p - i

Keras and optax agree. Decay is decoupled in both (`optax.rmsprop` has none of its own).
"""

import numpy as np


def init(p, *, momentum=0.0, centered=False, **_):
    s = {"velocity": np.zeros(np.shape(p))}
    if momentum > 0:
        s["momentum"] = np.zeros_like(p)
    if centered:
        s["average_gradient"] = np.zeros_like(p)
    return s


def update(
    g, p, s, t, lr, *, wd=None, variant="keras", path="", rho=0.9, momentum=0.0, epsilon=1e-7, centered=False, **_
):
    if wd is not None:
        p = p * (1 - lr * wd)
    new = {"velocity": rho * s["velocity"] + (1 - rho) * np.abs(g) ** 2}
    variance = new["velocity"]
    if centered:
        new["average_gradient"] = rho * s["average_gradient"] + (1 - rho) * g
        variance = variance - np.abs(new["average_gradient"]) ** 2
    step = lr * g / np.sqrt(variance + epsilon)
    if momentum > 0:
        step = momentum * s["momentum"] + step
        new["momentum"] = step
    return p - step, new
