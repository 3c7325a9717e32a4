"""NorMuon (Li et al. 2025, arXiv:2510.05491): Muon with equal updates for all neurons, which are columns here.

A matrix, with `momentum` mu:

    m' = mu m + (1 - mu) g,   u = mu m' + (1 - mu) g (nesterov) else m',   x = newton_schulz(u)
    v' = b2 v + (1 - b2) mean over rows of x^2,   y = x / (sqrt(v') + 1e-10)
    p' = p (1 - lr wd) - lr scale y |x| / (|y| + 1e-10)

In the authors' code rows are neurons. Other arrays, scales and decays: as in `muon`.
"""

import numpy as np

from .muon import adam, moved, newton_schulz, shape_scale, uses_adam


def init(p, *, path="", exclude_layers=None, exclude_embeddings=True, **_):
    if uses_adam(p, path, exclude_layers, exclude_embeddings):
        return {"momentum": np.zeros(np.shape(p)), "velocity": np.zeros(np.shape(p))}
    return {"momentum": np.zeros(np.shape(p)), "velocity": np.zeros(np.shape(p)[1])}


def update(
    g,
    p,
    s,
    t,
    lr,
    *,
    wd=None,
    variant="authors",
    path="",
    adam_beta_1=0.9,
    adam_beta_2=0.95,
    adam_weight_decay=0.0,
    epsilon=1e-10,
    exclude_layers=None,
    exclude_embeddings=True,
    muon_a=3.4445,
    muon_b=-4.7750,
    muon_c=2.0315,
    adam_lr_ratio=1.0,
    momentum=0.95,
    ns_steps=5,
    nesterov=True,
    rms_rate=0.2,
    scale="keller",
    cautious_decay=False,
    beta_2=0.95,
    **_,
):
    if uses_adam(p, path, exclude_layers, exclude_embeddings):
        numbers = {"b1": adam_beta_1, "b2": adam_beta_2, "epsilon": epsilon, "ratio": adam_lr_ratio}
        return adam(g, p, s, t, lr, variant=variant, nesterov=False, wd=adam_weight_decay, **numbers)
    m = momentum * s["momentum"] + (1 - momentum) * g
    u = momentum * m + (1 - momentum) * g if nesterov else m
    x = newton_schulz(u, ns_steps, muon_a, muon_b, muon_c, 1e-7)
    v = beta_2 * s["velocity"] + (1 - beta_2) * np.mean(x**2, 0)
    y = x / (np.sqrt(v) + 1e-10)
    y = y * np.linalg.norm(x) / (np.linalg.norm(y) + 1e-10)
    return moved(p, y * shape_scale(*p.shape, scale, rms_rate), lr, wd, cautious_decay), {"momentum": m, "velocity": v}
