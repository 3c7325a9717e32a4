"""Muon: orthogonalized momentum, for matrices; Adam updates the other parameters."""

from dataclasses import field
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.matrices import PLAIN, View, view
from jaxopt_keras.language.matrix_rule import MatrixRule
from jaxopt_keras.language.options import KERAS
from jaxopt_keras.language.paths import first_match
from jaxopt_keras.language.rule import Amount, Clock, Count, Decay, KerasOrder, Number, Rate, Read, Rule, Signed
from jaxopt_keras.rules.orthogonal.coefficients import Triple, read_iteration, steps_of
from jaxopt_keras.rules.orthogonal.fallback import AdamPart, OtherPart, read_others
from jaxopt_keras.rules.orthogonal.iteration import Normalization, Precision, orthogonalized
from jaxopt_keras.rules.orthogonal.shapes import read_layers, read_matrices, seen_as


class Muon(MatrixRule):
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
        matrices: which arrays are matrices, beside those of two axes: a dict from patterns of paths to descriptions
            with a word for each axis, "rows" for inputs, "columns" for outputs, and "batch": "batch... rows columns"
            for the layers of a scan and for experts, "rows batch columns" for heads, "rows (batch=36 columns)" for 36
            heads in one axis, "rows... columns" for convolutions. None as description leaves the parameter to Adam; the
            first pattern that is found counts. Or a function of path and shape that returns a description or None.
        iteration: the coefficients: the name of a table in `rules.orthogonal.coefficients.TABLES`, such as "keller",
            "quintic" or "polar_express_nanogpt"; a list of (a, b, c) for each step; None: `muon_a`, `muon_b` and
            `muon_c` in all steps. Or a function that gets a normalized matrix with rows <= columns, and returns the
            orthogonal one.
        normalization: the division of a matrix before the iteration: by its Frobenius norm; by a closer bound of its
            singular values, the "schatten" norm |x xᵀ|^½; exactly, by the "spectral" norm; or by rows, "aol"
            (Turbo-Muon, arXiv:2512.04632).
        gram: iterate the small matrix x xᵀ where that saves operations, for matrices about three times as wide as high
            or more. Results are equal up to rounding.
        precision: of the products: "float32"; "bfloat16", with sums in float32; or "device": bfloat16 on GPUs and TPUs,
            float32 on CPUs. Matrices of float64 and of complex numbers keep their own.
        scale: of an update: "rms": sqrt(max(rows, columns)) rms_rate, as Moonlight and Kimi; "keller":
            sqrt(max(1, columns / rows)); "spectral": sqrt(columns / rows), as Dion.
        cautious_decay: weight decay only of the elements that the step brings nearer to 0 (arXiv:2510.12402).
        others: a rule in the place of Adam, at the rate `lr adam_lr_ratio`. Its numbers are part of the program.
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
    matrices: Annotated[Any, Read(read_matrices, searched=True)] = field(default=(), kw_only=True)
    iteration: Annotated[Any, Read(read_iteration)] = field(default=None, kw_only=True)
    normalization: Normalization = field(default="frobenius", kw_only=True)
    gram: bool = field(default=False, kw_only=True)
    precision: Precision = field(default="device", kw_only=True)
    scale: Literal["rms", "keller", "spectral"] = field(default="rms", kw_only=True)
    cautious_decay: bool = field(default=False, kw_only=True)
    others: Annotated[Any, Read(read_others)] = field(default=None, kw_only=True)

    class State(NamedTuple):
        momentum: Signed

    def _seen(self, path: str, p: Array) -> View | None:
        excluded = self.exclude_embeddings and "embedding" in path.lower()
        if excluded or first_match(self.exclude_layers, path) is not None:
            return None
        return seen_as(self.matrices, path, p.shape)

    def accepts(self, path: str, p: Array) -> bool:
        return self._seen(path, p) is not None

    def placed(self, path: str, p: Array) -> "Muon":
        return self.bind({"matrices": self._seen(path, p)})

    def view(self, shape: tuple[int, ...]) -> View:
        return self.matrices if isinstance(self.matrices, View) else view(PLAIN, shape)

    @property
    def fallback(self) -> Rule:
        numbers = {"ratio": self.adam_lr_ratio, "weight_decay": self.adam_weight_decay}
        if self.others is not None:
            return OtherPart(rule=self.others).bind(numbers)
        numbers |= {"beta_1": self.adam_beta_1, "beta_2": self.adam_beta_2, "epsilon": self.epsilon}
        paper = "keras" if self.variant == "keras" else "optax"
        return AdamPart(nesterov=self.variant == "optax" and self.nesterov, variant=paper).bind(numbers)

    def decoupled(self, weight_decay: Any) -> Any:
        return None if self.cautious_decay else weight_decay

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
        """Return the coefficients of each step of the iteration."""
        return steps_of(self.iteration, (self.muon_a, self.muon_b, self.muon_c), self.ns_steps)

    def whole(self, u: Array) -> Array:
        """Return the orthogonal matrix of `u`, approximately."""
        epsilon = self.epsilon if self.variant == "optax" else 1e-7
        settings = self.normalization, self.gram, self.precision, epsilon
        return orthogonalized(u, self.iteration, self.steps(), *settings)

    def trail(self, x: Array, p: Array, s: Any, at: Clock) -> tuple[Array, Any]:
        return self.scaled(x, p, at), s

    def scaled(self, x: Array, p: Array, at: Clock) -> Array:
        """Return the amount to add to `p`, from an orthogonal `x`: scaled by its shape and the rate, with the decay."""
        step = -at.lr * self.factor(*self.view(x.shape).matrix) * x
        if not self.cautious_decay or at.weight_decay is None:
            return step
        return step - at.lr * at.weight_decay * jnp.where((p * x).real >= 0, p, 0)

    def factor(self, rows: int, columns: int) -> Any:
        """Return the size of an update of an orthogonal matrix for a rate of 1."""
        ratio = columns / max(rows, 1)
        if self.scale != "rms":
            return max(1, ratio) ** 0.5 if self.scale == "keller" else ratio**0.5
        if self.rms_rate is not None:
            return max(rows, columns) ** 0.5 * self.rms_rate
        return max(1, ratio) ** 0.5 if self.variant == "optax" else 1

    def note(self) -> str:
        """Say how the rule iterates, for a plan."""
        if callable(self.iteration):
            what = f"by {getattr(self.iteration, '__name__', 'a function')}"
        else:
            of = self.iteration if isinstance(self.iteration, str) else "given coefficients"
            what = f"in {len(self.steps())} Newton-Schulz iterations of {of}"
        here = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        products = here if self.precision == "device" else self.precision
        return f"{type(self).__name__} orthogonalizes {what}, with products in {products}"
