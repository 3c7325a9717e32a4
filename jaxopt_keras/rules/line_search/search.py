"""A rule with a zoom line search along its steps."""

from dataclasses import field
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.clock import Clock, Line
from jaxopt_keras.language.fields import Amount, Within
from jaxopt_keras.language.hyperparameters import Hyperparameters
from jaxopt_keras.language.second import Searching
from jaxopt_keras.rules.line_search.zoom import Point, Zoom


class ZoomSearch(Searching, Hyperparameters):
    """The arguments of the search. The rule has scalars `value`, `rate` and `evaluations`, and a slot `grad`."""

    searching: ClassVar[Any] = property(lambda self: self.linesearch == "zoom")

    linesearch: Literal["zoom", "none"] = field(default="zoom", kw_only=True)
    max_linesearch_steps: Annotated[int, Within(1)] = field(default=20, kw_only=True)
    max_learning_rate: Amount | None = field(default=None, kw_only=True)
    tol: Amount = field(default=0.0, kw_only=True)
    increase_factor: Annotated[float, Within(above=1)] = field(default=2.0, kw_only=True)
    slope_rtol: Amount = field(default=1e-4, kw_only=True)
    curv_rtol: Amount = field(default=0.9, kw_only=True)
    approx_dec_rtol: Amount | None = field(default=1e-6, kw_only=True)
    stepsize_precision: Amount = field(default=1e-5, kw_only=True)
    initial_guess_strategy: Literal["one", "keep"] = field(default="one", kw_only=True)

    def search(self, line: Line, scalars: Any, at: Clock) -> tuple[Any, Any]:
        names = [name for name in Zoom._fields if name != "run"]
        zoom = Zoom(**{name: getattr(self, name) for name in names})
        guess = scalars.rate if self.initial_guess_strategy == "keep" else jnp.ones_like(scalars.rate)
        start = Point(jnp.zeros_like(scalars.rate), line.value, line.slope)
        end = zoom.run(line.at, start, line.gradients, guess)
        count = end.evaluations.astype(scalars.rate.dtype)
        return scalars._replace(value=end.point.value, rate=end.point.rate, evaluations=count), end.grads

    def searched(self, step: Array, s: Any, at: Clock) -> tuple[Array, Any]:
        grad, _ = jax.lax.optimization_barrier((at.second, s.grad))  # an argument that nothing reads is not reused
        return at.scalars.rate * step, s._replace(grad=grad)
