"""Distance over weighted gradients (Khaled, Mishchenko & Jin 2023, arXiv:2305.16284), as optax 0.2.8 has it.

g' = g + wd p
D' = max(D, |p - p_0|^2), from `init_estim_sq_dist`, or eps     (norms over all arrays)
G' = G + D' |g'|^2
p' = p - lr D' / (sqrt(G') + eps) g'
"""

import numpy as np

from .dog import total

telling = {"init_estim_sq_dist": 0.01}


def init(p, **_):
    return {"start": np.array(p)}


def start(*, init_estim_sq_dist=None, epsilon=1e-4, **_):
    return {"distance": epsilon if init_estim_sq_dist is None else init_estim_sq_dist, "squares": 0.0}


def advance(common, grads, params, slots, t, lr, *, weight_decays, **_):
    distance = max(common["distance"], total(params[n] - slots[n]["start"] for n in grads))
    squares = total(g + (weight_decays[n] or 0) * params[n] for n, g in grads.items())
    return {"distance": distance, "squares": common["squares"] + distance * squares}


def update(g, p, s, t, lr, *, common, wd=None, epsilon=1e-4, **_):
    return p - lr * common["distance"] / (np.sqrt(common["squares"]) + epsilon) * (g + (wd or 0) * p), s
