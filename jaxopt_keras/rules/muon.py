"""Muon: orthogonalized momentum, for matrices; Adam updates the other parameters."""

from typing import Annotated, Any, ClassVar, NamedTuple

from jax import Array

from jaxopt_keras.language.numerics import norm
from jaxopt_keras.language.option_values import patterns
from jaxopt_keras.language.options import KERAS
from jaxopt_keras.language.paths import first_match
from jaxopt_keras.language.rule import (
    Amount,
    Clock,
    Count,
    Decay,
    KerasOrder,
    NonNegative,
    Number,
    Rate,
    Read,
    Rule,
    Signed,
)
from jaxopt_keras.rules.adam import Adam
from jaxopt_keras.rules.nadam import Nadam


def _read_layers(layers: Any) -> tuple[str, ...]:
    if not isinstance(layers, list | tuple | None):
        raise TypeError(f"`exclude_layers` must be a list of regular expressions. Received: exclude_layers={layers!r}")
    return patterns("exclude_layers", layers or ())


class Muon(Rule):
    """Muon (Jordan et al. 2024), with the update scale of Moonlight (Liu et al. 2025, arXiv:2502.16982).

        m <- momentum m + g
        u = g + momentum m if nesterov else m
        x = u / (|u| + 1e-7), then ns_steps times: a = x xᵀ,  x <- muon_a x + (muon_b a + muon_c a²) x
        p <- p - lr rms_rate sqrt(max(rows, columns)) x         rms_rate None: the factor is 1

    Adam updates a parameter that is not a matrix, has "embedding" in its path (`exclude_embeddings`), or has a path in
    which one of the regular expressions `exclude_layers` is found: at the rate `lr adam_lr_ratio`, with
    `adam_weight_decay`.

    `variant="optax"`, as optax.contrib.muon: m is an average, bias-corrected; `epsilon` replaces 1e-7; rms_rate None:
    sqrt(max(1, columns / rows)); the Adam part has the paper's epsilon, and Nesterov momentum if `nesterov`.

    Args:
        adam_beta_1: `beta_1` of Adam, for the parameters that it updates.
        adam_beta_2: `beta_2` of Adam.
        adam_weight_decay: the weight decay of the parameters that Adam updates.
        epsilon: `epsilon` of Adam; with "optax" of the iteration too.
        exclude_layers: a list of regular expressions: Adam updates parameters with a matching path. None: no list.
        exclude_embeddings: leave parameters with "embedding" in their path to Adam.
        muon_a, muon_b, muon_c: the coefficients of the Newton-Schulz iteration.
        adam_lr_ratio: the rate of the Adam part, in units of the rate.
        momentum: the decay of the momentum of matrices.
        ns_steps: the number of Newton-Schulz iterations.
        nesterov: use Nesterov momentum.
        rms_rate: the root mean square of an update of a matrix for a rate of 1.
    """

    grain: ClassVar = "matrix"
    defaults: ClassVar = {"weight_decay": 0.004}
    keras: ClassVar = KerasOrder(
        signature=("learning_rate", "adam_beta_1", "adam_beta_2", "adam_weight_decay", "epsilon", *KERAS)
    )

    learning_rate: Rate = 1e-3
    adam_beta_1: Decay = 0.9
    adam_beta_2: Decay = 0.999
    adam_weight_decay: Amount | None = 0.004
    epsilon: Amount = 1e-7
    exclude_layers: Annotated[Any, Read(_read_layers, searched=True)] = None
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

    def accepts(self, path: str, p: Array) -> bool:
        if p.ndim != 2 or (self.exclude_embeddings and "embedding" in path.lower()):
            return False
        return first_match(self.exclude_layers, path) is None

    @property
    def fallback(self) -> Rule:
        values = {"beta_1": self.adam_beta_1, "beta_2": self.adam_beta_2, "epsilon": self.epsilon}
        values |= {"ratio": self.adam_lr_ratio, "weight_decay": self.adam_weight_decay}
        return AdamPart(nesterov=self.variant == "optax" and self.nesterov, variant=self.variant).bind(values)

    # The base class has None for the next two, which is not a function: hence pyright's ignore.
    def lead(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:  # pyright: ignore
        mu = self.momentum
        if self.variant == "optax":
            m = mu * s.momentum + (1 - mu) * g
            later = m / (1 - mu ** (at.t + 1))
            u = mu * later + (1 - mu) * g / (1 - mu**at.t) if self.nesterov else m / (1 - mu**at.t)
        else:
            m = mu * s.momentum + g
            u = g + mu * m if self.nesterov else m
        return u, self.State(m)

    def whole(self, u: Array) -> Array:  # pyright: ignore  # likewise
        """Orthogonalize `u`, and scale it to an update for a rate of 1."""
        x, (rows, columns) = self.orthogonalized(u), u.shape
        if self.rms_rate is not None:
            x = x * (max(rows, columns) ** 0.5 * self.rms_rate)
        elif self.variant == "optax":
            x = x * max(1, columns / max(rows, 1)) ** 0.5
        return x

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        u, s = self.lead(g, p, s, at)
        return -at.lr * self.whole(u), s

    def orthogonalized(self, u: Array) -> Array:
        """Approximate the nearest (semi-)orthogonal matrix by Newton-Schulz iterations, on the shorter side."""
        tall = u.shape[0] > u.shape[1]
        x = u.T if tall else u
        x = x / (norm(x) + (self.epsilon if self.variant == "optax" else 1e-7))
        for _ in range(self.ns_steps):
            a = x @ x.conj().T
            x = self.muon_a * x + (self.muon_b * a + self.muon_c * a @ a) @ x
        return x.T if tall else x


class AdamPart(Rule):
    """The fallback of Muon: Adam, or Nadam, at `ratio` times the rate and with its own decay."""

    nesterov: bool = False
    beta_1: Decay = 0.9
    beta_2: Decay = 0.999
    epsilon: Amount = 1e-7
    ratio: Amount = 1.0
    weight_decay: Amount | None = None

    class State(NamedTuple):
        momentum: Signed
        velocity: NonNegative

    @property
    def inner(self) -> Rule:
        adam = Nadam if self.nesterov else Adam
        return adam(variant=self.variant).bind({n: getattr(self, n) for n in ("beta_1", "beta_2", "epsilon")})

    def decoupled(self, weight_decay: Any) -> Any:
        own = self.weight_decay
        return own * self.ratio if self.variant == "optax" and own is not None else own

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        step, new = self.inner.update(g, p, self.inner.State(*s), at)
        return self.ratio * step, self.State(*new[:2])
