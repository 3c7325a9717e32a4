"""FTRL-proximal (McMahan et al. 2013), with L2 shrinkage and beta.

    n' = n + g^2,   n = initial_accumulator_value at first
    z' = z + g + 2 shrinkage p - (n'^-power - n^-power) / lr p
    p' = (clip(z', -l1, l1) - z') / (n'^-power / lr + 2 (l2 + beta / (2 lr)))

As in Keras; optax has no FTRL, so there is no other variant. p' is made from z' alone: the initial p matters only
through z'. Decay comes first (decoupled).
"""

import numpy as np


def init(p, *, initial_accumulator_value=0.1, **_):
    return {"accumulator": np.full(np.shape(p), float(initial_accumulator_value)), "linear": np.zeros(np.shape(p))}


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
    learning_rate_power=-0.5,
    l1_regularization_strength=0.0,
    l2_regularization_strength=0.0,
    l2_shrinkage_regularization_strength=0.0,
    beta=0.0,
    **_,
):
    if variant != "keras":
        raise ValueError(f"Ftrl exists in Keras only. Received: variant={variant!r}")
    if wd is not None:
        p = p * (1 - lr * wd)
    l1, l2 = l1_regularization_strength, l2_regularization_strength + beta / (2 * lr)
    old = s["accumulator"]
    n = old + g**2
    sigma = (n**-learning_rate_power - old**-learning_rate_power) / lr
    z = s["linear"] + g + 2 * l2_shrinkage_regularization_strength * p - sigma * p
    p = (np.clip(z, -l1, l1) - z) / (n**-learning_rate_power / lr + 2 * l2)
    return p, {"accumulator": n, "linear": z}
