"""AdaMuon (Si et al. 2025, arXiv:2507.11005): Muon with a second moment of each element.

A matrix, with `momentum` mu:

    m' = mu m + (1 - mu) g,   u = mu m' + (1 - mu) g (nesterov) else m',   x = newton_schulz(sign(u) if signed else u)
    v' = b2 v + (1 - b2) x^2,   y = x / (sqrt(v' / (1 - b2^t)) + 1e-8)
    p' = p (1 - lr wd) - lr scale y sqrt(min(rows, cols)) / (|y| + 1e-8)

Other arrays, scales and decays: as in `muon`.
"""

import numpy as np

from . import muon


def init(p, **_):
    return {"momentum": np.zeros(np.shape(p)), "velocity": np.zeros(np.shape(p))}


def direction(g, p, s, t, n):
    m, u = muon.averaged(g, s, n)
    x = muon.orthogonal(np.sign(u) if n.signed else u, n)
    v = n.beta_2 * s["velocity"] + (1 - n.beta_2) * x**2
    y = x / (np.sqrt(v / (1 - n.beta_2**t)) + 1e-8)
    return y * np.sqrt(min(p.shape)) / (np.linalg.norm(y) + 1e-8), {"momentum": m, "velocity": v}


update = muon.kin(direction, beta_2=0.999, signed=False, adam_weight_decay=0.01, epsilon=1e-8)
