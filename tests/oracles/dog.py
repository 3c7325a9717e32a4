"""Distance over gradients (Ivgi et al. 2023, arXiv:2302.12022; dog-optimizer 1.0.3).

g' = g + wd p
r' = max(r, |p - p_0|), at the first update reps_rel (1 + |p_0|), with `init_eta` 0     (norms over all arrays)
G' = G + |g'|^2
p' = p - lr r' / sqrt(G' + eps) g', with `init_eta` at the first update p - lr init_eta g'
"""

import numpy as np

telling = {"reps_rel": 0.01, "init_eta": None}


def init(p, **_):
    return {"start": np.array(p)}


def start(**_):
    return {"distance": 0.0, "squares": 0.0}


def total(arrays):
    return sum(np.sum(np.abs(x) ** 2) for x in arrays)


def advance(
    common, grads, params, slots, t, lr, *, weight_decays, reps_rel=1e-6, init_eta=None, **_,
):  # fmt: skip
    distance = max(common["distance"], np.sqrt(total(params[n] - slots[n]["start"] for n in grads)))
    if t == 1 and init_eta is None:
        distance = reps_rel * (1 + np.sqrt(total(params[n] for n in grads)))
    decayed = [g + (weight_decays[n] or 0) * params[n] for n, g in grads.items()]
    return {"distance": distance, "squares": common["squares"] + total(decayed)}


def update(g, p, s, t, lr, *, common, wd=None, epsilon=1e-8, init_eta=None, **_):
    rate = common["distance"] / np.sqrt(common["squares"] + epsilon)
    if t == 1 and init_eta is not None:
        rate = init_eta
    return p - lr * rate * (g + (wd or 0) * p), s
