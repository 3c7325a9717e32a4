"""SM3-II (Anil et al. 2019, arXiv:1901.11150; google-research/sm3; optax.sm3).

    v_j = g_j^2 + min over the axes i of a_i[j_i];   a_i' = max of v over all j with this j_i
    m' = momentum m + (1 - momentum) g / sqrt(v + eps), where 0 / 0 = 0;   p' = p - lr m'

eps: 1e-30, in optax 1e-8. The fifth axis and all after it have one a in common. Decay is decoupled.
"""

import itertools

import numpy as np


def groups(ndim):
    """The axes of each a."""
    return [(i,) for i in range(min(ndim, 4))] + ([tuple(range(4, ndim))] if ndim > 4 else []) or [()]


def init(p, *, momentum=0.9, **_):
    s = {f"accumulator_{i}": np.zeros([p.shape[a] for a in own]) for i, own in enumerate(groups(np.ndim(p)))}
    return s | ({"momentum": np.zeros_like(p)} if momentum else {})


def update(g, p, s, t, lr, *, wd=None, variant="authors", path="", momentum=0.9, epsilon=None, **_):
    if epsilon is None:
        epsilon = 1e-8 if variant == "optax" else 1e-30
    if wd is not None:
        p = p * (1 - lr * wd)
    u, new = np.zeros_like(p), {f"accumulator_{i}": np.zeros_like(s[f"accumulator_{i}"]) for i in range(5)
                                if f"accumulator_{i}" in s}  # fmt: skip
    for j in itertools.product(*map(range, p.shape)):
        places = {f"accumulator_{i}": tuple(j[a] for a in own) for i, own in enumerate(groups(p.ndim))}
        v = np.abs(g[j]) ** 2 + min(s[name][place] for name, place in places.items())
        u[j] = g[j] / np.sqrt(v + epsilon) if v else 0
        for name, place in places.items():
            new[name][place] = max(new[name][place], v)
    if momentum:
        u = new["momentum"] = momentum * s["momentum"] + (1 - momentum) * u
    return p - lr * u, new
