"""Nadam (Dozat 2016): Adam with Nesterov's momentum.

    m' = b1 m + (1 - b1) g
    v' = b2 v + (1 - b2) |g|^2,   vhat = v' / (1 - b2^t)

    keras:  mu_t = b1 (1 - 0.96^t / 2),   U_t = mu_1 ... mu_t
            mhat = mu_{t+1} m' / (1 - U_t mu_{t+1}) + (1 - mu_t) g / (1 - U_t)
    optax:  mhat = b1 m' / (1 - b1^{t+1}) + (1 - b1) g / (1 - b1^t)

    p' = p - lr mhat / (sqrt(vhat + eps_root) + eps)

Keras has the paper's momentum schedule mu_t, optax a constant b1. U_t belongs to the step, not to the parameter, so it
is computed from t and only shown as the slot `u_product`. Decay is decoupled in both (`optax.nadamw`).
"""

import numpy as np


def init(p, *, variant="keras", **_):
    s = {"momentum": np.zeros_like(p), "velocity": np.zeros(np.shape(p))}
    if variant == "keras":
        s["u_product"] = np.ones(())
    return s


def update(
    g, p, s, t, lr, *, wd=None, variant="keras", path="", beta_1=0.9, beta_2=0.999, epsilon=1e-7, eps_root=0.0, **_
):
    if wd is not None:
        p = p * (1 - lr * wd)
    m = beta_1 * s["momentum"] + (1 - beta_1) * g
    v = beta_2 * s["velocity"] + (1 - beta_2) * np.abs(g) ** 2
    new = {"momentum": m, "velocity": v}
    if variant == "optax":
        m_hat = beta_1 * m / (1 - beta_1 ** (t + 1)) + (1 - beta_1) * g / (1 - beta_1**t)
    else:
        mu = [beta_1 * (1 - 0.5 * 0.96**k) for k in range(1, t + 2)]  # mu_1 .. mu_{t+1}
        u_product = np.prod(mu[:t])
        m_hat = mu[t] * m / (1 - u_product * mu[t]) + (1 - mu[t - 1]) * g / (1 - u_product)
        new["u_product"] = np.asarray(u_product)
    v_hat = v / (1 - beta_2**t)
    return p - lr * m_hat / (np.sqrt(v_hat + eps_root) + epsilon), new
