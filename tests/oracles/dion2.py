"""Dion2 (Ahn et al. 2025, arXiv:2512.16928): Muon of the largest slices of the momentum.

A matrix:

    m' = m + g;   i = the ceil(fraction n) of the n slices along the shorter side of m' (columns, if it is square) with
    the largest sums of |m'|;   x_i = newton_schulz(m'_i), 0 elsewhere
    p' = p (1 - lr wd) - lr scale x;   m'_i <- momentum m'_i

Other arrays, scales and decays: as in `muon`.
"""

import numpy as np

from . import muon

init = muon.init


def direction(g, p, s, t, n):
    m, x = s["momentum"] + g, np.zeros(np.shape(p))
    if p.shape[0] >= p.shape[1]:
        chosen = (slice(None), np.argsort(-np.abs(m).sum(0), kind="stable")[: int(np.ceil(n.fraction * p.shape[1]))])
    else:
        chosen = (np.argsort(-np.abs(m).sum(1), kind="stable")[: int(np.ceil(n.fraction * p.shape[0]))],)
    x[chosen] = muon.orthogonal(m[chosen], n)
    m[chosen] *= n.momentum
    return x, {"momentum": m}


update = muon.kin(direction, fraction=0.25, adam_beta_2=0.95, adam_weight_decay=0.01, epsilon=1e-8, scale="spectral")
