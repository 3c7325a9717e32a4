"""Adam (Kingma & Ba 2014, arXiv:1412.6980), optionally with the AMSGrad maximum (Reddi et al. 2018, arXiv:1904.09237).

    m' = b1 m + (1 - b1) g
    v' = b2 v + (1 - b2) |g|^2

    keras:  h' = max(h, v')                     p' = p - lr sqrt(1 - b2^t) / (1 - b1^t) m' / (sqrt(h') + eps)
    optax:  h' = max(h, v' / (1 - b2^t))        p' = p - lr m' / (1 - b1^t) / (sqrt(h') + eps)

with h' the v' inside the maximum when AMSGrad is off. Keras's epsilon is the paper's "epsilon hat" and its maximum is
over the raw v'; optax adds epsilon after the bias correction (Algorithm 1) and takes the maximum of the corrected v'.
Decay is decoupled in both. `eps_root` is added to v' / (1 - b2^t) under the root.
"""

import numpy as np


def init(p, *, amsgrad=False, **_):
    s = {"momentum": np.zeros_like(p), "velocity": np.zeros(np.shape(p))}
    if amsgrad:
        s["velocity_hat"] = np.zeros(np.shape(p))
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
    epsilon=1e-7,
    amsgrad=False,
    eps_root=0.0,
    **_,
):
    if wd is not None:
        p = p * (1 - lr * wd)
    m = beta_1 * s["momentum"] + (1 - beta_1) * g
    v = beta_2 * s["velocity"] + (1 - beta_2) * np.abs(g) ** 2
    new = {"momentum": m, "velocity": v}
    h = v / (1 - beta_2**t) if variant == "optax" else v
    if amsgrad:
        h = np.maximum(s["velocity_hat"], h)
        new["velocity_hat"] = h
    if variant == "optax":
        step = lr * m / (1 - beta_1**t) / (np.sqrt(h + eps_root) + epsilon)
    else:
        step = lr * np.sqrt(1 - beta_2**t) / (1 - beta_1**t) * m / (np.sqrt(h + eps_root * (1 - beta_2**t)) + epsilon)
    return p - step, new
