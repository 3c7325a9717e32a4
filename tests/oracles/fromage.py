"""Fromage (Bernstein et al. 2020, arXiv:2002.03432), as optax 0.2.8 has it.

r = max(|p|, min_norm) / max(|g|, min_norm), 1 if either is 0;  p' = (p (1 - lr wd) - lr r g) / sqrt(1 + lr^2)
"""

import numpy as np

telling = {"min_norm": 1.5}


def init(p, **_):
    return {}


def norm(x):
    return np.sqrt(np.sum(np.abs(x) ** 2))


def update(g, p, s, t, lr, *, wd=None, min_norm=1e-6, **_):
    if wd is not None:
        p = p * (1 - lr * wd)
    length, slope = max(norm(p), min_norm), max(norm(g), min_norm)
    ratio = length / slope if length > 0 and slope > 0 else 1.0
    return (p - lr * ratio * g) / np.sqrt(1 + lr**2), s
