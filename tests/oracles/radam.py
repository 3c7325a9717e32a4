"""RAdam (Liu et al. 2019, arXiv:1908.03265).

    m' = b1 m + (1 - b1) g,   v' = b2 v + (1 - b2) g^2
    l = 2 / (1 - b2) - 1,     n = l - 2 t b2^t / (1 - b2^t)
    n >= 5:  p' = p - lr sqrt((n - 4) / (l - 4) (n - 2) / (l - 2) l / n) mhat / d
    else:    p' = p - lr mhat  with `degenerated_to_sgd` and in optax, else p

The slot `root` is sqrt(v). Here
d = (sqrt(v') + eps) / sqrt(1 - b2^t) for the authors, sqrt(v' / (1 - b2^t)) + eps in optax. Decay is decoupled.
"""

import numpy as np

telling = {"beta_2": 0.9}


def init(p, **_):
    return {"momentum": np.zeros_like(p), "root": np.zeros(np.shape(p))}


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
    epsilon=1e-8,
    degenerated_to_sgd=False,
    **_,
):
    if wd is not None:
        p = p * (1 - lr * wd)
    m = beta_1 * s["momentum"] + (1 - beta_1) * g
    v = beta_2 * s["root"] ** 2 + (1 - beta_2) * np.abs(g) ** 2
    mean, bias = m / (1 - beta_1**t), 1 - beta_2**t
    powers = beta_2 ** np.arange(t)  # n = 1 + 2 x the mean age: the same number, without cancellation
    n, longest = 1 + 2 * np.sum(np.arange(t) * powers) / np.sum(powers), 2 / (1 - beta_2) - 1
    if n >= 5:
        r = np.sqrt((n - 4) / (longest - 4) * (n - 2) / (longest - 2) * longest / n)
        divisor = np.sqrt(v / bias) + epsilon if variant == "optax" else (np.sqrt(v) + epsilon) / np.sqrt(bias)
        p = p - lr * r * mean / divisor
    elif degenerated_to_sgd or variant == "optax":
        p = p - lr * mean
    return p, {"momentum": m, "root": np.sqrt(v)}
