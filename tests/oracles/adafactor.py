"""Adafactor (Shazeer & Stern 2018, arXiv:1804.04235).

    q  = g^2 + eps1,   b = 1 - t^beta_2_decay
    R' = b R + (1 - b) mean(q over axis j),   C' = b C + (1 - b) mean(q over axis i),   i < j the two factored axes
    V' = R' C' / mean(R' over axis i)         (factored),   else   V' = b V + (1 - b) q
    u  = g / sqrt(V'),   u <- u / max(1, rms(u) / clip_threshold)

    keras:  p <- p (1 - lr wd),  p' = p - max(eps2, rms(p)) min(lr, 1 / sqrt(t)) u      i, j: the last two axes
    optax:  p' = p - max(eps2, rms(p)) lr u - wd p                                      i, j: the two largest axes

Keras decays first and by the uncapped rate, takes rms(p) of the decayed p and always caps the rate at 1/sqrt(t)
(`relative_step` changes nothing); optax neither caps the rate nor multiplies the decay by it. An array is factored if
it has two axes or more and the smaller of i, j is at least `min_dim_size_to_factor` (default: keras 0, optax 128).
`row` is R', `column` is C'; there is no full `velocity` beside them (Keras keeps one). optax calls the mean over the
larger axis v_row; here `row` is always the mean over the later axis, which changes nothing in V'.
"""

import numpy as np


def factored_axes(shape, variant, min_dim_size_to_factor):
    """The axes (i, j), i < j, or None."""
    if min_dim_size_to_factor is None:
        min_dim_size_to_factor = 128 if variant == "optax" else 0
    if len(shape) < 2:
        return None
    if variant == "optax":
        i, j = sorted(int(axis) for axis in np.argsort(shape)[-2:])
    else:
        i, j = len(shape) - 2, len(shape) - 1
    return (i, j) if min(shape[i], shape[j]) >= min_dim_size_to_factor else None


def rms(x):
    return np.sqrt(np.mean(x**2))


def init(p, *, variant="keras", min_dim_size_to_factor=None, **_):
    axes = factored_axes(np.shape(p), variant, min_dim_size_to_factor)
    if axes is None:
        return {"velocity": np.zeros(np.shape(p))}
    i, j = axes
    return {"row": np.zeros(np.delete(np.shape(p), j)), "column": np.zeros(np.delete(np.shape(p), i))}


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
    beta_2_decay=-0.8,
    epsilon_1=1e-30,
    epsilon_2=1e-3,
    clip_threshold=1.0,
    relative_step=True,
    min_dim_size_to_factor=None,
    **_,
):
    if wd is not None and variant == "keras":
        p = p * (1 - lr * wd)
    q = g**2 + epsilon_1
    b = 1 - float(t) ** beta_2_decay
    axes = factored_axes(np.shape(p), variant, min_dim_size_to_factor)
    if axes is None:
        v = b * s["velocity"] + (1 - b) * q
        new = {"velocity": v}
    else:
        i, j = axes
        row = b * s["row"] + (1 - b) * np.mean(q, axis=j)
        column = b * s["column"] + (1 - b) * np.mean(q, axis=i)
        relative = row / np.mean(row, axis=i, keepdims=True)
        v = np.expand_dims(relative, j) * np.expand_dims(column, i)
        new = {"row": row, "column": column}
    u = g / np.sqrt(v)
    if clip_threshold is not None:
        u = u / np.maximum(1.0, rms(u) / clip_threshold)
    scale = np.maximum(epsilon_2, rms(p))
    if variant == "optax":
        return p - scale * lr * u - (0.0 if wd is None else wd) * p, new
    return p - scale * np.minimum(lr, 1 / np.sqrt(t)) * u, new
