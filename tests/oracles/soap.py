"""SOAP (Vyas et al. 2024, arXiv:2409.11321; nikhilvyas/SOAP).

t = 1: L = (1 - b) G G^T, R = (1 - b) G^T G; P, Q are their eigenvectors, largest first; p' = p. Then, with n = t - 1:

    G~ = P^T G Q,   m' = b1 m + (1 - b1) G,   v' = b2 v + (1 - b2) G~^2
    p  <- p - lr sqrt(1 - b2^n) / (1 - b1^n) P ((P^T m' Q) / (sqrt(v') + eps)) Q^T,   then p <- p - lr wd p
    L' = b L + (1 - b) G G^T,   R' likewise;   if n is a multiple of k, for P (and for Q with R):
        order the columns of P and the rows of v by diag(P^T L P), descending;  P <- the Q of the QR of L P

The release keeps m turned, and turns it back before P changes: the same. Where L has a lower rank than rows at t = 1,
the eigenvectors of 0 are the last columns of the full QR of the others. Sides above max_precond_dim have no factor;
arrays that are not matrices have none at all.

kl (Lin et al. 2025, arXiv:2509.03378), from t = 2 on, where both sides have a factor, with the old factors and bases:

    L' = b L + (1 - b) G R^-1 G^T / cols,   R^-1 = Q diag(1 / max(diag(Q^T R Q), eps)) Q^T
    R' likewise, by L^-1 / rows
"""

import numpy as np

pinned = {"kl": False}  # the inverse of a factor of low rank leaves few digits: it has a test of its own
telling = {"epsilon": 0.125}


def sides(p, max_precond_dim):
    return [ndim for ndim in range(2) if np.ndim(p) == 2 and np.size(p) and np.shape(p)[ndim] <= max_precond_dim]


def init(p, *, max_precond_dim=10_000, **_):
    s = {"momentum": np.zeros_like(p), "velocity": np.zeros_like(p)}
    for side in sides(p, max_precond_dim):
        name = ("left", "right")[side]
        s[name] = np.zeros((p.shape[side],) * 2)
        s[f"{name}_basis"] = np.eye(p.shape[side])
    return s


def gram(g, side):
    return g @ g.T if side == 0 else g.T @ g


def inverse(factor, basis, epsilon):
    return basis @ np.diag(1 / np.maximum(np.diag(basis.T @ factor @ basis), epsilon)) @ basis.T


def turn(x, s, sign=1):
    """P^T x Q, or P x Q^T for a negative sign."""
    if "left_basis" in s:
        x = (s["left_basis"].T if sign > 0 else s["left_basis"]) @ x
    if "right_basis" in s:
        x = x @ (s["right_basis"] if sign > 0 else s["right_basis"].T)
    return x


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
    beta_1=0.95,
    beta_2=0.95,
    shampoo_beta=None,
    epsilon=1e-8,
    precondition_frequency=10,
    max_precond_dim=10_000,
    kl=False,
    **_,
):
    b, new, n = beta_2 if shampoo_beta is None else shampoo_beta, dict(s), t - 1
    if n:
        new["momentum"] = beta_1 * s["momentum"] + (1 - beta_1) * g
        new["velocity"] = beta_2 * s["velocity"] + (1 - beta_2) * turn(g, s) ** 2
        u = turn(turn(new["momentum"], s) / (np.sqrt(new["velocity"]) + epsilon), s, -1)
        p = p - lr * np.sqrt(1 - beta_2**n) / (1 - beta_1**n) * u
        p = p if wd is None else p - lr * wd * p
    for side in sides(p, max_precond_dim):
        name = ("left", "right")[side]
        seen = gram(g, side)
        if kl and n and {"left", "right"} <= s.keys():
            other = inverse(s[("right", "left")[side]], s[("right_basis", "left_basis")[side]], epsilon)
            seen = (g @ other @ g.T if side == 0 else g.T @ other @ g) / g.shape[1 - side]
        factor = new[name] = b * s[name] + (1 - b) * seen
        basis = s[f"{name}_basis"]
        if not n:
            rank = min(p.shape)
            basis = np.linalg.eigh(factor)[1][:, ::-1]
            if rank < len(factor):
                basis = np.linalg.qr(basis[:, :rank], mode="complete")[0]
        elif n % precondition_frequency == 0:
            order = np.argsort(-np.diag(basis.T @ factor @ basis), kind="stable")
            new["velocity"] = np.take(new["velocity"], order, side)
            basis = np.linalg.qr(factor @ basis[:, order])[0]
        new[f"{name}_basis"] = basis
    return p, new
