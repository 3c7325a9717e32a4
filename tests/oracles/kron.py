"""PSGD Kron (arXiv:1512.04202, 2402.04553; kron-torch 0.3.3), with the probes V that the step draws.

    m' = b m + (1 - b) g,   h = m' / (1 - b^t)
    in a step that fits:  h <- h + sqrt(eps of float32) mean|h| V (also g, if the factors are fitted on it);
        A = h with every Q_i applied to its axis;  B = V with every Q_i^-T;  T1, T2: second moments along the axis
        Q_i <- Q_i - r triu(T1 - T2) Q_i / lb(T1 + T2);   diagonal: Q_i - r (T1 - T2) Q_i / max(T1 + T2)
    u = h with every Q_i^T Q_i,  u <- u min(1, 1.1 / (rms(u) + 1e-12));   p' = p - lr (u + wd p), wd not for vectors

It fits when the number of steps since the last fit reaches 1 / probability. lb(X): with c the longest column of X,
|X (X c / |X c|)|. Ours: none for h = 0; and every 100th step first gives all Q_i one greatest element.
"""

import numpy as np

from .loop import probe

telling = {"max_size_triangular": 3}
pinned = {"max_size_triangular": 5}
EPS = 2.0**-23


def seen(shape, merge_dims):
    if len(shape) > 2 and merge_dims:
        one, two = (np.prod(shape[:-1], dtype=int), shape[-1]), (shape[0], np.prod(shape[1:], dtype=int))
        return one if one[1] - one[0] <= two[1] - two[0] else two
    if len(shape) > 4:
        return (*shape[:4], np.prod(shape[4:], dtype=int))
    return shape or (1,)


def init(
    p,
    *,
    max_size_triangular=8192,
    min_ndim_triangular=2,
    memory_save_mode=None,
    precond_init_scale=1.0,
    merge_dims=True,
    **_,
):
    s, shape = {"momentum": np.zeros_like(p)}, seen(np.shape(p), merge_dims)
    for i, n in enumerate(shape):
        longest = i == np.argsort(shape)[-1]
        alone = len(shape) > 1 and n > sorted(shape)[-2]
        saved = {None: False, "all_diag": True, "one_diag": longest, "smart_one_diag": longest and alone}
        vector = n == 1 or n > max_size_triangular or len(shape) < min_ndim_triangular or saved[memory_save_mode]
        s[f"factor_{i}"] = precond_init_scale ** (1 / len(shape)) * (np.ones(n) if vector else np.eye(n))
    return s


def start(**_):
    return {"waited": 0.0}


def advance(
    common, grads, params, slots, t, lr, *, variant, weight_decays, preconditioner_update_probability=None, **_
):
    part = preconditioner_update_probability
    if part is None:
        part = min(max(np.exp(-0.001 * (t - 1 - 500)), 0.03), 1.0)
    waited = common["waited"] + 1
    return {"waited": 0.0 if waited >= 1 / part else waited}


def matrix(q):
    return np.diag(q) if q.ndim == 1 else q


def applied(x, i, m):
    return np.moveaxis(np.tensordot(m, x, (1, i)), 0, i)


def bound(x):
    c = x[:, np.argmax(np.sum(x**2, 0))]
    y = x @ c
    return np.linalg.norm(x @ (y / np.linalg.norm(y)))


def fit(qs, h, v, rate, t):
    if t % 100 == 0 and len(qs) > 1:
        tops = [np.max(np.abs(q)) for q in qs]
        qs = [q * np.prod(tops) ** (1 / len(qs)) / top for q, top in zip(qs, tops, strict=True)]
    a, b, new = h, v, []
    for i, q in enumerate(qs):
        a, b = applied(a, i, matrix(q)), applied(b, i, np.linalg.inv(matrix(q)).T)
    for i, q in enumerate(qs):
        others = [j for j in range(a.ndim) if j != i]
        one, two = np.tensordot(a, a, (others, others)), np.tensordot(b, b, (others, others))
        if q.ndim == 1:
            new.append(q - rate * np.diag(one - two) * q / np.max(np.diag(one + two)))
        else:
            new.append(q - rate * np.triu(one - two) @ q / bound(one + two))
    return new


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
    common=None,
    beta_1=0.9,
    momentum_into_precond_update=True,
    precond_lr=0.1,
    merge_dims=True,
    **_,
):
    if not np.size(p):
        return p, s
    m = beta_1 * s["momentum"] + (1 - beta_1) * g
    shape = seen(np.shape(p), merge_dims)
    h, g = (m / (1 - beta_1**t)).reshape(shape), np.reshape(g, shape)
    qs = [s[name] for name in sorted(s) if name.startswith("factor")]
    on = h if momentum_into_precond_update else g
    if common["waited"] == 0 and np.any(on):
        v = probe(path, t, np.shape(p)).reshape(shape)
        noised = on + np.sqrt(EPS) * np.mean(np.abs(on)) * v
        qs = fit(qs, noised, v, precond_lr, t)
        h = noised if momentum_into_precond_update else h
    u = h
    for i, q in enumerate(qs):
        u = applied(u, i, matrix(q).T @ matrix(q))
    u = u.reshape(np.shape(p))
    u = u * min(1, 1.1 / (np.sqrt(np.mean(u**2)) + 1e-12))
    if wd is not None and np.ndim(p) > 1:
        u = u + wd * p
    return p - lr * u, {"momentum": m} | {f"factor_{i}": q for i, q in enumerate(qs)}
