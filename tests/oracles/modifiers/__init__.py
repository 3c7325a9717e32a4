"""Float64 NumPy references of rules around rules, one function each, written from the formulas alone.

A reference around `base` is a pair of functions like those of the other oracles, `init(p, path)` and
`update(g, p, s, t, lr, wd, path)`, of which `base` is another one. `of` makes the innermost from an oracle.
"""

import re
from typing import NamedTuple

import numpy as np


class Reference(NamedTuple):
    init: object
    update: object


def of(module, **hyper):
    """The oracle of an optimizer, with these hyperparameters."""

    def update(g, p, s, t, lr, wd, path):
        return module.update(g, p, s, t, lr, wd=wd, path=path, **hyper)

    return Reference(lambda p, path: module.init(p, path=path, **hyper), update)


def of_gradients(change):
    """A modifier that changes gradients: `change(g, p, own, **hyper)` returns the new gradient and slots of its own."""

    def around(base, **hyper):
        def init(p, path):
            return {"own": None, "inner": base.init(p, path)}

        def update(g, p, s, t, lr, wd, path):
            g, own = change(g, p, s["own"], **hyper)
            p, inner = base.update(g, p, s["inner"], t, lr, wd, path)
            return p, {"own": own, "inner": inner}

        return Reference(init, update)

    return around


def norm(x):
    return np.sqrt(np.sum(x**2))


def mars_exact(gradient, last, t, p, gamma=0.025, beta=0.95):
    """c = g + gamma beta / (1 - beta) (g - h), h the gradient of the same loss at the last parameters, 0 at first"""
    g, h = gradient(p), gradient(last)
    return {n: g[n] + gamma * beta / (1 - beta) * (g[n] - (h[n] if t > 1 else 0)) for n in p}


def unit(g):
    return g / max(norm(g), 1)


@of_gradients
def mars(g, p, last, gamma=0.025, beta=0.95, clip=True):
    """c = g + gamma beta / (1 - beta) (g - last);  c / |c| where |c| > 1"""
    c = g + gamma * beta / (1 - beta) * (g - (0 if last is None else last))
    return (c / norm(c) if clip and norm(c) > 1 else c), g


@of_gradients
def centralized(g, p, own):
    """g - mean over all axes but the last, for more than one axis"""
    return (g if g.ndim < 2 or not g.size else g - np.mean(g, tuple(range(g.ndim - 1)), keepdims=True)), own


@of_gradients
def adaptive_clip(g, p, own, clipping=0.01, eps=1e-3):
    """g c / |g| where |g| > c = clipping max(|p|, eps), for each unit"""
    axes = None if g.ndim < 2 else 0 if g.ndim < 4 else tuple(range(g.ndim - 1))
    sizes = [np.sqrt(np.sum(x**2, axis=axes, keepdims=True)) for x in (g, p)]
    limit = clipping * np.maximum(sizes[1], eps)
    with np.errstate(all="ignore"):
        return np.where(sizes[0] > limit, g * limit / sizes[0], g), own


@of_gradients
def ortho_grad(g, p, own, eps=1e-30):
    """h = g - <p, g> / (|p|^2 + eps) p;  |g| / (|h| + eps) h"""
    if g.size < 2:
        return g, own
    h = g - np.sum(p * g) / (np.sum(p**2) + eps) * p
    return norm(g) / (norm(h) + eps) * h, own


def ascent(g, p, rho=0.05, eta=None):
    """The points p + rho T^2 g / |T g|, the norm over all arrays; T = 1, with eta |p| + eta where there are two axes"""
    sizes = {n: 1.0 if eta is None or x.ndim < 2 else np.abs(x) + eta for n, x in p.items()}
    length = np.sqrt(sum(np.sum((sizes[n] * g[n]) ** 2) for n in p))
    return {n: p[n] + rho / (length + 1e-12) * sizes[n] ** 2 * g[n] for n in p}


def cautious(base, least=1e-3):
    """u a / max(mean(a), least), a = 1[u g < 0], u the step without decay"""

    def update(g, p, s, t, lr, wd, path):
        p = p if wd is None else p * (1 - lr * wd)
        end, s = base.update(g, p, s, t, lr, None, path)
        a = np.where((end - p) * g < 0, 1.0, 0.0)
        return p + (end - p) * a / np.maximum(np.mean(a) if a.size else 0.0, least), s

    return Reference(base.init, update)


def cautious_decay(base):
    """p + u - lr wd p 1[u p <= 0], u the step without decay"""

    def update(g, p, s, t, lr, wd, path):
        end, s = base.update(g, p, s, t, lr, None, path)
        return end - lr * (wd or 0) * np.where((end - p) * p <= 0, p, 0), s

    return Reference(base.init, update)


def hyperball(base):
    """R q / |q|, q = p + lr R u / |u|, R = |p|, for more than one axis; u the step without decay"""

    def update(g, p, s, t, lr, wd, path):
        if p.ndim < 2 or not np.any(p):
            return base.update(g, p, s, t, lr, wd, path)
        end, s = base.update(g, p, s, t, lr, None, path)
        size = norm(end - p)
        q = p + (lr * norm(p) / size * (end - p) if size else 0)
        return norm(p) / norm(q) * q, s

    return Reference(base.init, update)


def lookahead(base, la_steps=5, la_alpha=0.8):
    """every la_steps updates: slow + la_alpha (p - slow), for both"""

    def init(p, path):
        return {"slow": np.array(p), "inner": base.init(p, path)}

    def update(g, p, s, t, lr, wd, path):
        p, inner = base.update(g, p, s["inner"], t, lr, wd, path)
        slow = s["slow"]
        if t % la_steps == 0:
            p = slow = (1 - la_alpha) * slow + la_alpha * p
        return p, {"slow": slow, "inner": inner}

    return Reference(init, update)


def scaled_rate(base, pattern=(), factor=1.0):
    """the rate times the factor where the pattern is found"""

    def update(g, p, s, t, lr, wd, path):
        return base.update(g, p, s, t, lr * factor if pattern and re.search(pattern, path) else lr, wd, path)

    return Reference(base.init, update)


def schedule_free(base, momentum=0.9, weight_decay_at_y=0.0, r=0.0, weight_lr_power=2.0):
    """the base on z, the average x of all z, and the parameter y = momentum x + (1 - momentum) z"""

    def init(p, path):
        return {"z": np.array(p), "x": np.array(p), "max": 0.0, "sum": 0.0, "inner": base.init(p, path)}

    def update(g, p, s, t, lr, wd, path):
        z = s["z"] - lr * weight_decay_at_y * p
        z, inner = base.update(g, z, s["inner"], t, lr, wd, path)
        greatest = max(s["max"], lr)
        w = t**r * greatest**weight_lr_power
        total = s["sum"] + w
        c = w / total if total else 0.0
        x = (1 - c) * s["x"] + c * z
        new = {"z": z, "x": x, "max": greatest, "sum": total, "inner": inner}
        return momentum * x + (1 - momentum) * z, new

    return Reference(init, update)
