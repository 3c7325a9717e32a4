"""OrthoGrad: gradients orthogonal to the weights, which change their direction and not their size."""

from typing import ClassVar

from jax import Array

from jaxopt_keras.language.clock import Clock
from jaxopt_keras.language.fields import Amount
from jaxopt_keras.language.modifier import Modifier
from jaxopt_keras.language.nested import Both
from jaxopt_keras.language.numerics import squarable


class OrthoGrad(Modifier):
    """Gradients orthogonal to the weights (Prieto et al. 2025, arXiv:2501.04697), around any rule.

        h = g - sum(p g) / (sum(p²) + eps) p
        g <- norm(g) / (norm(h) + eps) h
        p <- p + u                              u: the step of the rule inside for this gradient

    The sums and norms are over the array, of more than one element.

    Args:
        eps: a constant added to the denominators, so that they are not 0.
    """

    decays: ClassVar = True
    needs: ClassVar = "leaf"
    keeps_steps: ClassVar = True

    eps: Amount = 1e-30

    def covers(self, path: str, p: Array) -> bool:
        return p.size > 1  # of a number alone nothing but rounding errors would be left

    def update(self, g: Array, p: Array, s: Both, at: Clock) -> tuple[Array, Both]:
        g, q = squarable(g), squarable(p)
        along = at.sum((q.conj() * g).real) / (at.sum((q.conj() * q).real) + self.eps)
        h = g - along * q
        return self.within(h * (at.norm(g) / (at.norm(h) + self.eps)), p, s, at)
