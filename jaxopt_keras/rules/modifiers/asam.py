"""ASAM: SAM with distances in units of the weights."""

from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.fields import Amount
from jaxopt_keras.rules.modifiers.sam import SAM


class ASAM(SAM):
    """Adaptive sharpness-aware minimization (Kwon et al. 2021, arXiv:2102.11600), around any rule.

        T = |p| + eta                           1 in arrays with fewer than two axes
        e = rho T² g / (norm(T g) + 1e-12)      the norm over all arrays
        g <- the gradient at p + e
        p <- p + u                              u: the step of the rule inside at p, for this gradient

    The distance is relative to the weights, so that it does not depend on their scale. All else is as for SAM. The
    authors have T = 1 for biases; here also for the scales of normalizations.

    Args:
        rho: the relative distance of the point at which the second gradient is taken.
        eta: the least size of a weight that counts.

    Raises:
        ValueError: for a rule inside that takes a second gradient itself.
    """

    needs: ClassVar = "matrix"

    rho: Amount = 0.5
    eta: Amount = 0.01

    def scale(self, p: Array) -> Any:
        return jnp.abs(p) + self.eta if p.ndim > 1 else 1
