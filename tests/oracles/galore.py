"""GaLore (Zhao et al. 2024, arXiv:2403.03507; galore-torch 1.0; optax.contrib.galore), for matrices of (in, out).

    after every k updates, from the first on:  P = the first r left singular vectors of g if the rows are projected,
    else the right ones, each with a positive greatest element
    h = P^T g or g P;   m' = b1 m + (1 - b1) h,  v' = b2 v + (1 - b2) h^2
    n = sqrt(1 - b2^t) / (1 - b1^t) m' / (sqrt(v') + eps), in optax m' / (1 - b1^t) / (sqrt(v' / (1 - b2^t)) + eps)
    p' = p - lr scale (P n or n P^T),  then p' (1 - lr wd);  in optax p' = p (1 - lr wd) - lr scale (...)

The release projects the shorter side, of square ones the inputs; optax the longer side, of square ones the rows;
"reverse_std" the other one. Other arrays: Adam.
"""

import numpy as np

telling = {"rank": 2, "update_proj_gap": 2}
pinned = {"rank": 2, "update_proj_gap": 7}


def side(p, variant, proj_type):
    """The projected axis, or None."""
    if np.ndim(p) != 2 or not np.size(p):
        return None
    rows, columns = np.shape(p)
    first = rows >= columns if variant == "optax" else rows <= columns
    return (0 if first else 1) if proj_type == "std" else (1 if first else 0)


def init(p, *, variant="authors", rank=128, proj_type="std", **_):
    axis = side(p, variant, proj_type)
    if axis is None:
        return {"momentum": np.zeros_like(p), "velocity": np.zeros_like(p)}
    (rows, columns), r = p.shape, min(rank, *p.shape)
    small = (r, columns) if axis == 0 else (rows, r)
    projector = (rows, r) if axis == 0 else (r, columns)
    return {"momentum": np.zeros(small), "velocity": np.zeros(small), "projector": np.zeros(projector)}


def directions(g, axis, rank):
    vectors = np.linalg.svd(g if axis == 0 else g.T)[0][:, : min(rank, *g.shape)]
    for k in range(vectors.shape[1]):
        if vectors[np.argmax(np.abs(vectors[:, k])), k] < 0:
            vectors[:, k] *= -1
    return vectors if axis == 0 else vectors.T


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
    beta_2=0.999,
    epsilon=1e-6,
    rank=128,
    update_proj_gap=200,
    scale=0.25,
    proj_type="std",
    **_,
):
    axis, new, h = side(p, variant, proj_type), dict(s), g
    if axis is not None:
        if (t - 1) % update_proj_gap == 0:
            new["projector"] = directions(g, axis, rank)
        h = new["projector"].T @ g if axis == 0 else g @ new["projector"].T
    m = new["momentum"] = beta_1 * s["momentum"] + (1 - beta_1) * h
    v = new["velocity"] = beta_2 * s["velocity"] + (1 - beta_2) * h**2
    if variant == "optax":
        n = m / (1 - beta_1**t) / (np.sqrt(v / (1 - beta_2**t)) + epsilon)
    else:
        n = np.sqrt(1 - beta_2**t) / (1 - beta_1**t) * m / (np.sqrt(v) + epsilon)
    if axis is not None:
        n = scale * (new["projector"] @ n if axis == 0 else n @ new["projector"])
    if wd is None:
        return p - lr * n, new
    return (p * (1 - lr * wd) - lr * n if variant == "optax" else (p - lr * n) * (1 - lr * wd)), new
