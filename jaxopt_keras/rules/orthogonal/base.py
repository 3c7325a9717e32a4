"""`Orthogonal`: a rule whose steps are orthogonal matrices, Muon or one of its kin."""

from dataclasses import field
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.matrices import PLAIN, View, view
from jaxopt_keras.language.matrix_rule import MatrixRule
from jaxopt_keras.language.rule import Clock, Read, Rule
from jaxopt_keras.rules.orthogonal.coefficients import Triple, read_iteration
from jaxopt_keras.rules.orthogonal.fallback import read_others
from jaxopt_keras.rules.orthogonal.iteration import Normalization, Precision, orthogonalized
from jaxopt_keras.rules.orthogonal.shapes import is_told, read_matrices, seen_as


class Orthogonal(MatrixRule):
    """The common part of Muon and its kin: the matrices that they see, how they iterate, the sizes of steps.

    Args:
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

    shapes: ClassVar[Any] = property(lambda self: Rule.shapes + (() if self.others is None else self.others.shapes))

    matrices: Annotated[Any, Read(read_matrices, searched=True)] = field(default=(), kw_only=True)
    iteration: Annotated[Any, Read(read_iteration)] = field(default=None, kw_only=True)
    normalization: Normalization = field(default="frobenius", kw_only=True)
    gram: bool = field(default=False, kw_only=True)
    precision: Precision = field(default="device", kw_only=True)
    scale: Literal["rms", "keller", "spectral"] = field(default="rms", kw_only=True)
    cautious_decay: bool = field(default=False, kw_only=True)
    others: Annotated[Any, Read(read_others)] = field(default=None, kw_only=True)

    def excludes(self, path: str) -> bool:
        """Whether a parameter is left to the fallback whatever its shape is."""
        return False

    def seen(self, path: str, p: Array) -> View | None:
        """Return how a parameter is seen as matrices; None: the fallback updates it."""
        return None if self.excludes(path) else seen_as(self.matrices, path, p.shape)

    def accepts(self, path: str, p: Array) -> bool:
        return self.seen(path, p) is not None

    def overlooks(self, path: str, p: Any) -> bool:
        asked = self.excludes(path) or is_told(self.matrices, path)
        return p.ndim > 2 and self.seen(path, p) is None and not asked

    def placed(self, path: str, p: Array) -> "Orthogonal":
        return self.bind({"matrices": self.seen(path, p)})

    def view(self, shape: tuple[int, ...]) -> View:
        return self.matrices if isinstance(self.matrices, View) else view(PLAIN, shape)

    def steps(self) -> tuple[Triple, ...]:
        """Return the coefficients of each step of the iteration."""
        raise NotImplementedError(f"{type(self).__name__} needs `steps(self)`.")

    def offset(self) -> Any:
        """Return what is added to the norm by which a matrix is divided."""
        return 1e-7

    def whole(self, u: Array) -> Array:
        """Return the orthogonal matrix of `u`, approximately."""
        settings = self.normalization, self.gram, self.precision, self.offset()
        return orthogonalized(u, self.iteration, self.steps(), *settings)

    def decoupled(self, weight_decay: Any) -> Any:
        return None if self.cautious_decay else weight_decay

    def trail(self, x: Array, p: Array, s: Any, at: Clock) -> tuple[Array, Any]:
        return self.scaled(x, p, at), s

    def scaled(self, x: Array, p: Array, at: Clock) -> Array:
        """Return the amount to add to `p`, from an orthogonal `x`: scaled by its shape and the rate, with the decay."""
        step = -at.lr * self.factor(*self.view(x.shape).matrix) * x
        if not self.cautious_decay or at.weight_decay is None:
            return step
        return step - at.lr * at.weight_decay * jnp.where((p * x.conj()).real >= 0, p, 0)

    def factor(self, rows: int, columns: int) -> Any:
        """Return the size of an update of an orthogonal matrix for a rate of 1."""
        ratio = columns / max(rows, 1)
        return max(1, ratio) ** 0.5 if self.scale == "keller" else ratio**0.5

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
