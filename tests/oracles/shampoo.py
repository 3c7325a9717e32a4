"""Shampoo (Gupta, Koren & Singer 2018, arXiv:1802.09568; Meta's release, arXiv:2309.06497).

A matrix, cut into blocks of at most max_preconditioner_dim rows and columns; of each block:

    m' = b1 m + (1 - b1) g,   h = m' / (1 - b1^t)
    L' = b2 L + (1 - b2) g g^T,   R' = b2 R + (1 - b2) g^T g       (b2 = 1: plain sums, and no correction)
    P = (L' / (1 - b2^t) + eps)^(-1/4),   Q likewise, if t is a multiple of k: eigenvalues are shifted to be at least 0
    u = P h Q,   a = h / (sqrt(v' / (1 - c^t)) + e),   v' = c v + (1 - c) g^2
    p' = p - lr u |a| / |u|   (grafting="none": p - lr u);   while t < k:  p - lr a   (p - lr h)

Any other array: Adam with b1, c and e. Decay is decoupled.
"""

import numpy as np

telling = {"epsilon": 1.0, "max_preconditioner_dim": 3, "beta_2": 0.9}
# With a small epsilon the roots of eigenvalues near 0 are rounding in float32: a float64 test has one.
pinned = {"max_preconditioner_dim": 4, "epsilon": 1.0}


def is_matrix(p):
    return np.ndim(p) == 2 and np.size(p) > 0


def corners(shape, most):
    """The first row and column of each block, by its place."""
    rows, cols = (min(n, most) for n in shape)
    return (
        {(i // rows, j // cols): (i, j) for i in range(0, shape[0], rows) for j in range(0, shape[1], cols)},
        rows,
        cols,
    )


def init(p, *, max_preconditioner_dim=1024, **_):
    s = {"momentum": np.zeros_like(p), "velocity": np.zeros_like(p)}
    if is_matrix(p):
        places, rows, cols = corners(p.shape, max_preconditioner_dim)
        down, across = (1 + max(place[axis] for place in places) for axis in range(2))
        for name, n in (("left", rows), ("right", cols)):
            s[name] = np.zeros((down, across, n, n))
            s[f"{name}_root"] = np.zeros((down, across, n, n))
    return s


def root(x, epsilon):
    values, vectors = np.linalg.eigh(x)
    return vectors @ np.diag((values - min(values.min(), 0) + epsilon) ** -0.25) @ vectors.T


def update(
    g,
    p,
    s,
    t,
    lr,
    *,
    wd=None,
    variant="authors",
    path="",
    beta_1=0.9,
    beta_2=1.0,
    epsilon=1e-12,
    precondition_frequency=1,
    max_preconditioner_dim=1024,
    grafting="adam",
    grafting_beta_2=0.999,
    grafting_epsilon=1e-8,
    **_,
):
    if wd is not None:
        p = p * (1 - lr * wd)
    m = beta_1 * s["momentum"] + (1 - beta_1) * g
    v = grafting_beta_2 * s["velocity"] + (1 - grafting_beta_2) * np.abs(g) ** 2
    h = m / (1 - beta_1**t)
    a = h / (np.sqrt(v / (1 - grafting_beta_2**t)) + grafting_epsilon)
    if not is_matrix(p):
        return p - lr * a, {"momentum": m, "velocity": v}
    new = {name: np.array(x) for name, x in s.items()} | {"momentum": m, "velocity": v}
    step = np.zeros_like(p)
    places, rows, cols = corners(p.shape, max_preconditioner_dim)
    keep, add, correction = (1, 1, 1) if beta_2 == 1 else (beta_2, 1 - beta_2, 1 - beta_2**t)
    for place, (i, j) in places.items():
        part = np.s_[i : i + rows, j : j + cols]
        G = np.zeros((rows, cols))
        G[: g[part].shape[0], : g[part].shape[1]] = g[part]
        for name, seen in (("left", G @ G.T), ("right", G.T @ G)):
            new[name][place] = keep * s[name][place] + add * seen
            if t % precondition_frequency == 0:
                new[f"{name}_root"][place] = root(new[name][place] / correction, epsilon)
        height, width = h[part].shape
        left, right = new["left_root"][place][:height, :height], new["right_root"][place][:width, :width]
        u = left @ h[part] @ right
        if grafting == "adam":
            size = np.sqrt(np.sum(u**2))
            u = u * np.sqrt(np.sum(a[part] ** 2)) / size if size > 0 else u
        if t < precondition_frequency:
            u = a[part] if grafting == "adam" else h[part]
        step[part] = u
    return p - lr * step, new
