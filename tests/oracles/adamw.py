"""AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101): Adam after the decoupled decay p <- p (1 - lr wd).

    m' = b1 m + (1 - b1) g
    v' = b2 v + (1 - b2) |g|^2

    keras:  p' = p (1 - lr wd) - lr sqrt(1 - b2^t) / (1 - b1^t) m' / (sqrt(v') + eps)
    optax:  p' = p - lr (m' / (1 - b1^t) / (sqrt(v' / (1 - b2^t)) + eps) + wd p)

The two differ as in Adam (epsilon, and the maximum of AMSGrad); the decay is the same. Keras's default `wd` is 0.004,
here as everywhere `None` means none.
"""

from .adam import init, update

__all__ = ["init", "update"]
