"""Dion (Ahn et al. 2025, arXiv:2504.05295), for matrices of (in, out), which the paper has as (out, in).

    M = M + G;   P = the Q of the QR of M^T Q;   R = M P;   M' = M - (1 - mu) R P^T
    Q' = R with each column divided by its norm + eps;   p' = p (1 - lr wd) - lr sqrt(out / in) Q' P^T

Q starts normal, ceil(rank_fraction min(in, out)) columns; for M = 0 it stays, and p only decays. Other arrays: as in
`muon`.
"""

import numpy as np

from . import muon
from .loop import probe

pinned = telling = {"rank_fraction": 0.5}


def init(p, *, path="", rank_fraction=1.0, exclude_layers=None, exclude_embeddings=True, **_):
    if muon.uses_adam(p, path, exclude_layers, exclude_embeddings):
        return {"momentum": np.zeros(np.shape(p)), "velocity": np.zeros(np.shape(p))}
    return {"momentum": np.zeros(p.shape), "basis": np.zeros((len(p), int(np.ceil(rank_fraction * min(p.shape)))))}


def direction(g, p, s, t, n):
    m, q = s["momentum"] + g, s["basis"] if np.any(s["basis"]) else probe(n.path, t, s["basis"].shape)
    if not np.any(m):
        return 0 * m, {"momentum": m, "basis": q}
    turned = np.linalg.qr(m.T @ q)[0]
    r = m @ turned
    q = r / (np.linalg.norm(r, axis=0) + n.epsilon)
    return q @ turned.T, {"momentum": m - (1 - n.momentum) * r @ turned.T, "basis": q}


update = muon.kin(
    direction, rank_fraction=1.0, adam_beta_2=0.95, adam_weight_decay=0.01, epsilon=1e-8, scale="spectral"
)
