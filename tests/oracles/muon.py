"""Muon (Jordan 2024; Liu et al. 2025, arXiv:2502.16982): momentum orthogonalized by Newton-Schulz; Adam for the rest.

A matrix (two axes, `path` without "embedding" if `exclude_embeddings`, and not found by a regex of `exclude_layers`):

    keras:  m' = mu m + g                  d = g + mu m'                                          (nesterov) else m'
    optax:  m' = mu m + (1 - mu) g         d = mu m' / (1 - mu^{t+1}) + (1 - mu) g / (1 - mu^t)   (nesterov)
                                               else m' / (1 - mu^t)
    X = d / (|d|_F + eps_ns);   ns_steps times:  A = X X^T,  X <- a X + (b A + c A A) X           (X transposed if tall)
    p' = p (1 - lr wd) - lr scale X

    scale = sqrt(max(rows, cols)) rms_rate;   without `rms_rate`:  keras 1,  optax sqrt(max(1, cols / rows))
    scale of Keller: sqrt(max(1, cols / rows)),  of Dion ("spectral"): sqrt(cols / rows)
    eps_ns:  keras 1e-7,  optax epsilon
    cautious decay (arXiv:2510.12402): in the place of p (1 - lr wd),  p - lr wd p where p and the step agree in sign

Any other array, with r = lr adam_lr_ratio and `adam_weight_decay` (w) in the place of `wd`:

    m' = b1 m + (1 - b1) g,   v' = b2 v + (1 - b2) g^2
    keras:  p' = p (1 - lr w) - r sqrt(1 - b2^t) / (1 - b1^t) m' / (sqrt(v') + eps)
    optax:  p' = p (1 - r w) - r mhat / (sqrt(v' / (1 - b2^t)) + eps)
            mhat = b1 m' / (1 - b1^{t+1}) + (1 - b1) g / (1 - b1^t)  (nesterov)  else  m' / (1 - b1^t)

In Keras the momentum is a plain sum and Adam's epsilon is "epsilon hat"; in optax it is a bias-corrected average,
`nesterov` turns Adam into Nadam, and the rate of Adam also scales Adam's decay. A caller that excludes a parameter
from decay passes `wd=None, adam_weight_decay=None`. The exclusion by path is Keras's; in optax it is
`muon_weight_dimension_numbers`.
"""

import inspect
import re
from types import SimpleNamespace

import numpy as np


def uses_adam(p, path="", exclude_layers=None, exclude_embeddings=True):
    if np.ndim(p) != 2:
        return True
    if exclude_embeddings and "embedding" in path.lower():
        return True
    return any(re.search(keyword, path) for keyword in exclude_layers or ())


def init(p, *, path="", exclude_layers=None, exclude_embeddings=True, **_):
    s = {"momentum": np.zeros(np.shape(p))}
    if uses_adam(p, path, exclude_layers, exclude_embeddings):
        s["velocity"] = np.zeros(np.shape(p))
    return s


def newton_schulz(x, steps, a, b, c, eps):
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / (np.sqrt(np.sum(x**2)) + eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def shape_scale(rows, cols, scale="rms", rms_rate=0.2, otherwise=1.0):
    if scale == "keller":
        return np.sqrt(max(1, cols / rows)) if rows else 1.0
    if scale == "spectral":
        return np.sqrt(cols / rows) if rows else 0.0
    return otherwise if rms_rate is None else np.sqrt(max(rows, cols)) * rms_rate


def moved(p, direction, lr, wd, cautious):
    """Decay, and subtract lr times the direction."""
    if wd is not None:
        p = p - lr * wd * (p * (p * direction >= 0) if cautious else p)
    return p - lr * direction


def adam(g, p, s, t, lr, *, variant, nesterov, b1, b2, epsilon, ratio, wd):
    rate = lr * ratio
    if wd is not None:
        p = p * (1 - (lr if variant == "keras" else rate) * wd)
    m = b1 * s["momentum"] + (1 - b1) * g
    v = b2 * s["velocity"] + (1 - b2) * g**2
    if variant == "keras":
        step = rate * np.sqrt(1 - b2**t) / (1 - b1**t) * m / (np.sqrt(v) + epsilon)
    else:
        m_hat = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t) if nesterov else m / (1 - b1**t)
        step = rate * m_hat / (np.sqrt(v / (1 - b2**t)) + epsilon)
    return p - step, {"momentum": m, "velocity": v}


def update(
    g,
    p,
    s,
    t,
    lr,
    *,
    wd=None,
    variant="keras",
    path="",
    adam_beta_1=0.9,
    adam_beta_2=0.999,
    adam_weight_decay=0.004,
    epsilon=1e-7,
    exclude_layers=None,
    exclude_embeddings=True,
    muon_a=3.4445,
    muon_b=-4.7750,
    muon_c=2.0315,
    adam_lr_ratio=1,
    momentum=0.95,
    ns_steps=5,
    nesterov=True,
    rms_rate=0.2,
    scale="rms",
    cautious_decay=False,
    **_,
):
    if uses_adam(p, path, exclude_layers, exclude_embeddings):
        numbers = {"b1": adam_beta_1, "b2": adam_beta_2, "epsilon": epsilon, "ratio": adam_lr_ratio}
        return adam(g, p, s, t, lr, variant=variant, nesterov=nesterov, wd=adam_weight_decay, **numbers)

    mu = momentum
    if variant == "keras":
        m = mu * s["momentum"] + g
        d = g + mu * m if nesterov else m
    else:
        m = mu * s["momentum"] + (1 - mu) * g
        d = mu * m / (1 - mu ** (t + 1)) + (1 - mu) * g / (1 - mu**t) if nesterov else m / (1 - mu**t)
    x = newton_schulz(d, ns_steps, muon_a, muon_b, muon_c, epsilon if variant == "optax" else 1e-7)
    otherwise = shape_scale(*p.shape, "keller") if variant == "optax" else 1.0
    return moved(p, x * shape_scale(*p.shape, scale, rms_rate, otherwise), lr, wd, cautious_decay), {"momentum": m}


DEFAULTS = {n: x.default for n, x in inspect.signature(update).parameters.items() if x.default is not x.empty}


def kin(direction, **own):
    """Return the `update` of a relative of Muon: `direction` for matrices, Adam in the paper's form for other arrays.

    direction: a function (g, p, s, t, n) -> (direction, new slots), where `n` has the numbers by name.
    own: the defaults that are not Muon's.
    """
    defaults = DEFAULTS | {"variant": "authors"} | own

    def update(g, p, s, t, lr, **given):
        n = SimpleNamespace(**defaults | given)
        if uses_adam(p, n.path, n.exclude_layers, n.exclude_embeddings):
            numbers = {"b1": n.adam_beta_1, "b2": n.adam_beta_2, "epsilon": n.epsilon, "ratio": n.adam_lr_ratio}
            return adam(g, p, s, t, lr, variant=n.variant, nesterov=False, wd=n.adam_weight_decay, **numbers)
        x, s = direction(g, p, s, t, n)
        return moved(p, x * shape_scale(*p.shape, n.scale, n.rms_rate), lr, n.wd, n.cautious_decay), s

    update.__signature__ = inspect.Signature(
        [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=x) for n, x in defaults.items()]
    )
    return update


def orthogonal(u, n):
    return newton_schulz(u, n.ns_steps, n.muon_a, n.muon_b, n.muon_c, 1e-7)


def averaged(g, s, n):
    """Return the momentum as an average, and what is orthogonalized."""
    m = n.momentum * s["momentum"] + (1 - n.momentum) * g
    return m, n.momentum * m + (1 - n.momentum) * g if n.nesterov else m
