"""L-BFGS (optax 0.2.8), written with the inverse Hessian as a matrix; without a line search.

    H_0 = (s'y / y'y) I of the last pair, or min(1, 1 / |g|) I without a pair
    H_{k+1} = (I - s y' / s'y) H_k (I - y s' / s'y) + s s' / s'y        for each pair, from the oldest
    p' = p - lr H g                                                     over all parameters as one vector

A pair with s'y <= 0 is left out.
"""

import numpy as np


def start(**_):
    return []


def direction(g, pairs, scale_init_precond=True):
    """H g of one long vector."""
    usable = [(s, y) for s, y in pairs if s @ y > 0]
    scale = 1.0
    if scale_init_precond:
        scale = min(1.0, 1 / np.sqrt(g @ g))
        if pairs and pairs[-1][0] @ pairs[-1][1] > 0:
            scale = pairs[-1][0] @ pairs[-1][1] / (pairs[-1][1] @ pairs[-1][1])
    h = scale * np.eye(len(g))
    for s, y in usable:
        left = np.eye(len(g)) - np.outer(s, y) / (s @ y)
        h = left @ h @ left.T + np.outer(s, s) / (s @ y)
    return h @ g


def run(p, gradient, steps, lr, memory_size=10, scale_init_precond=True):
    """The points after each step."""
    pairs, points, g = [], [p], gradient(p)
    for _ in range(steps):
        q = p - lr * direction(g, pairs[-memory_size:], scale_init_precond)
        after = gradient(q)
        pairs.append((q - p, after - g))
        p, g = q, after
        points.append(p)
    return points
