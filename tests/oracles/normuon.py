"""NorMuon (Li et al. 2025, arXiv:2510.05491): Muon with equal updates for all neurons, which are columns here.

A matrix, with `momentum` mu:

    m' = mu m + (1 - mu) g,   u = mu m' + (1 - mu) g (nesterov) else m',   x = newton_schulz(u)
    v' = b2 v + (1 - b2) mean over rows of x^2,   y = x / (sqrt(v') + 1e-10)
    p' = p (1 - lr wd) - lr scale y |x| / (|y| + 1e-10)

In the authors' code rows are neurons. Other arrays, scales and decays: as in `muon`.
"""

import numpy as np

from . import muon


def init(p, **hyper):
    return {"velocity": np.zeros(np.shape(p)[-1:])} | muon.init(p, **hyper)


def direction(g, p, s, t, n):
    m, u = muon.averaged(g, s, n)
    x = muon.orthogonal(u, n)
    v = n.beta_2 * s["velocity"] + (1 - n.beta_2) * np.mean(x**2, 0)
    y = x / (np.sqrt(v) + 1e-10)
    return y * np.linalg.norm(x) / (np.linalg.norm(y) + 1e-10), {"momentum": m, "velocity": v}


update = muon.kin(direction, beta_2=0.95, adam_beta_2=0.95, adam_weight_decay=0.0, epsilon=1e-10, scale="keller")
