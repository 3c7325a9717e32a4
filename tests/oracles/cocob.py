"""COCOB-Backprop (Orabona & Tommasi 2017, arXiv:1705.07795), as optax 0.2.8 has it.

c = lr (g + wd p);  L' = max(L, |c|), L_0 = eps;  G' = G + |c|;  R' = max(R - c (p - p_0), 0);  S' = S - c
p' = p_0 + S' / (L' max(G' + L', alpha L')) (L' + R')
"""

import numpy as np

telling = {"epsilon": 0.5, "alpha": 2.0}


def init(p, *, epsilon=1e-8, **_):
    zeros = np.zeros_like(p)
    return {"start": np.array(p), "scale": np.full_like(p, epsilon), "absolute": zeros, "reward": zeros, "total": zeros}


def update(g, p, s, t, lr, *, wd=None, alpha=100.0, **_):
    c = lr * (g + (wd or 0) * p)
    scale, absolute = np.maximum(s["scale"], np.abs(c)), s["absolute"] + np.abs(c)
    reward, total = np.maximum(s["reward"] - c * (p - s["start"]), 0), s["total"] - c
    new = s["start"] + total / (scale * np.maximum(absolute + scale, alpha * scale)) * (scale + reward)
    return new, {"start": s["start"], "scale": scale, "absolute": absolute, "reward": reward, "total": total}
