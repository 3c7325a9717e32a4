"""Dion2 (Ahn et al. 2025, arXiv:2512.16928): Muon of the largest slices of the momentum.

A matrix:

    m' = m + g;   i = the ceil(fraction n) of the n slices along the shorter side of m' with the largest sums of |m'|
    x_i = newton_schulz(m'_i), 0 elsewhere;   p' = p (1 - lr wd) - lr scale x;   m'_i <- momentum m'_i

Other arrays, scales and decays: as in `muon`.
"""

import numpy as np

from .muon import adam, moved, newton_schulz, shape_scale, uses_adam


def init(p, *, path="", exclude_layers=None, exclude_embeddings=True, **_):
    if uses_adam(p, path, exclude_layers, exclude_embeddings):
        return {"momentum": np.zeros(np.shape(p)), "velocity": np.zeros(np.shape(p))}
    return {"momentum": np.zeros(np.shape(p))}


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
    adam_weight_decay=0.01,
    epsilon=1e-8,
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
    scale="spectral",
    cautious_decay=False,
    fraction=0.25,
    **_,
):
    if uses_adam(p, path, exclude_layers, exclude_embeddings):
        numbers = {"b1": adam_beta_1, "b2": adam_beta_2, "epsilon": epsilon, "ratio": adam_lr_ratio}
        return adam(g, p, s, t, lr, variant=variant, nesterov=False, wd=adam_weight_decay, **numbers)
    m, x = s["momentum"] + g, np.zeros(np.shape(p))
    if p.shape[0] > p.shape[1]:
        chosen = (slice(None), np.argsort(-np.abs(m).sum(0), kind="stable")[: int(np.ceil(fraction * p.shape[1]))])
    else:
        chosen = (np.argsort(-np.abs(m).sum(1), kind="stable")[: int(np.ceil(fraction * p.shape[0]))],)
    x[chosen] = newton_schulz(m[chosen], ns_steps, muon_a, muon_b, muon_c, 1e-7)
    m[chosen] *= momentum
    return moved(p, x * shape_scale(*p.shape, scale, rms_rate), lr, wd, cautious_decay), {"momentum": m}
