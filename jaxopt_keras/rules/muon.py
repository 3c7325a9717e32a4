"""Muon: orthogonalized momentum, for matrices; Adam updates the other parameters."""

from typing import Annotated, Any, ClassVar, NamedTuple

from jax import Array

from jaxopt_keras.language.options import KERAS
from jaxopt_keras.language.paths import first_match
from jaxopt_keras.language.rule import Amount, Clock, Count, Decay, KerasOrder, Number, Rate, Read, Rule, Signed
from jaxopt_keras.rules.orthogonal.base import Orthogonal
from jaxopt_keras.rules.orthogonal.coefficients import Triple, steps_of
from jaxopt_keras.rules.orthogonal.fallback import AdamPart, OtherPart
from jaxopt_keras.rules.orthogonal.shapes import read_layers


class Muon(Orthogonal):
    """Muon (Jordan et al. 2024), with the update scale of Moonlight (Liu et al. 2025, arXiv:2502.16982).

        m <- momentum m + g
        u = g + momentum m if nesterov else m
        x = u / (|u| + 1e-7), then ns_steps times: a = x xᵀ,  x <- muon_a x + (muon_b a + muon_c a²) x
        p <- p - lr rms_rate sqrt(max(rows, columns)) x         rms_rate None: the factor is 1

    Adam updates a parameter that is not a matrix, has "embedding" in its path (`exclude_embeddings`), or has a path in
    which one of the regular expressions `exclude_layers` is found: at the rate `lr adam_lr_ratio`, with
    `adam_weight_decay`. `describe` lists these parameters.

    `variant="optax"`, as optax.contrib.muon: m is an average, bias-corrected; `epsilon` replaces 1e-7; rms_rate None:
    sqrt(max(1, columns / rows)); the Adam part has the paper's epsilon, and Nesterov momentum if `nesterov`.

    Args:
        adam_beta_1: `beta_1` of Adam, for the parameters that it updates.
        adam_beta_2: `beta_2` of Adam.
        adam_weight_decay: the weight decay of the parameters that Adam updates.
        epsilon: `epsilon` of Adam; with "optax" of the iteration too.
        exclude_layers: a list of regular expressions: Adam updates parameters with a matching path. None: no list.
        exclude_embeddings: leave parameters with "embedding" in their path to Adam.
        muon_a, muon_b, muon_c: the coefficients of the Newton-Schulz iteration, where `iteration` is None.
        adam_lr_ratio: the rate of the Adam part, in units of the rate.
        momentum: the decay of the momentum of matrices.
        ns_steps: the number of Newton-Schulz iterations. A list as `iteration` has its own number.
        nesterov: use Nesterov momentum.
        rms_rate: the root mean square of an update of a matrix for a rate of 1, where `scale` is "rms".
    """

    defaults: ClassVar = {"weight_decay": 0.004}
    keras: ClassVar = KerasOrder(
        signature=("learning_rate", "adam_beta_1", "adam_beta_2", "adam_weight_decay", "epsilon", *KERAS)
    )

    learning_rate: Rate = 1e-3
    adam_beta_1: Decay = 0.9
    adam_beta_2: Decay = 0.999
    adam_weight_decay: Amount | None = 0.004
    epsilon: Amount = 1e-7
    exclude_layers: Annotated[Any, Read(read_layers, searched=True)] = None
    exclude_embeddings: bool = True
    muon_a: Number = 3.4445
    muon_b: Number = -4.7750
    muon_c: Number = 2.0315
    adam_lr_ratio: Amount = 1.0
    momentum: Decay = 0.95
    ns_steps: Count = 5
    nesterov: bool = True
    rms_rate: Amount | None = 0.2

    class State(NamedTuple):
        momentum: Signed

    def excludes(self, path: str) -> bool:
        is_embedding = self.exclude_embeddings and "embedding" in path.lower()
        return is_embedding or first_match(self.exclude_layers, path) is not None

    @property
    def fallback(self) -> Rule:
        numbers = {"ratio": self.adam_lr_ratio, "weight_decay": self.adam_weight_decay}
        if self.others is not None:
            return OtherPart(rule=self.others).bind(numbers)
        numbers |= {"beta_1": self.adam_beta_1, "beta_2": self.adam_beta_2, "epsilon": self.epsilon}
        paper = "keras" if self.variant == "keras" else "optax"
        return AdamPart(nesterov=self.variant == "optax" and self.nesterov, variant=paper).bind(numbers)

    def lead(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        mu = self.momentum
        if self.variant == "optax":
            m = mu * s.momentum + (1 - mu) * g
            later = m / (1 - mu ** (at.t + 1))
            u = mu * later + (1 - mu) * g / (1 - mu**at.t) if self.nesterov else m / (1 - mu**at.t)
        else:
            m = mu * s.momentum + g
            u = g + mu * m if self.nesterov else m
        return u, self.State(m)

    def steps(self) -> tuple[Triple, ...]:
        return steps_of(self.iteration, (self.muon_a, self.muon_b, self.muon_c), self.ns_steps)

    def offset(self) -> Any:
        return self.epsilon if self.variant == "optax" else super().offset()

    def factor(self, rows: int, columns: int) -> Any:
        if self.scale != "rms":
            return super().factor(rows, columns)
        if self.rms_rate is not None:
            return max(rows, columns) ** 0.5 * self.rms_rate
        return max(1, columns / max(rows, 1)) ** 0.5 if self.variant == "optax" else 1
