"""L-BFGS: Newton's method with a curvature that is found from the last steps, and a line search."""

import math
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxopt_keras.language.rule import Clock, Exact, Rate, Rule, Within
from jaxopt_keras.rules.line_search import ZoomSearch


class LBFGS(ZoomSearch, Rule):
    """L-BFGS (Liu & Nocedal 1989) with a zoom line search, as optax has it. For losses without noise.

        s_i, y_i: the last `memory_size` changes of the parameters and of the gradients
        B = s yᵀ / yᵀ y of the last pair, or min(1, 1 / norm(g)) at first; 1 without `scale_init_precond`
        d = -lr H g             H: B, corrected by every pair, from the oldest, so that H y_i = s_i
        p <- p + a d            a: the rate that the line search finds; 1 without one

    All products are over all arrays. A pair without positive curvature, s yᵀ <= 0, is left out. The line search
    (Nocedal & Wright 2006, algorithms 3.5 and 3.6; `jaxopt_keras.rules.line_search.Zoom`) evaluates the loss and its
    gradient inside the step, which traces the loss function once. Every step must be given the loss and the loss
    function: `kernel.minimize(loss, params, state)`, `kernel.step(params, state, grads, value=value, value_fn=loss)`,
    or in the stateful face `minimize(loss, variables)`.

    `state.scalars["value"]` and `state.slots["grad"]` are the loss and its gradient at the new parameters, so that
    `optax.value_and_grad_from_state(loss)(params, state=state)` evaluates nothing twice. The rate and the number of
    evaluations are among the scalars too. A loss that is not finite everywhere along the line changes nothing.

    The memory is `2 memory_size` times that of the parameters.

    Args:
        memory_size: the number of pairs.
        scale_init_precond: begin with the curvature of the last pair.
        linesearch: "none" takes the rate as it is; a step then needs no loss function.
        max_linesearch_steps: the greatest number of evaluations in a step.
        max_learning_rate: the greatest rate that is tried; None: no limit.
        tol: by how much the criteria may be missed.
        increase_factor: the factor by which the rate grows at first.
        slope_rtol: the least decrease of the loss, in units of that by its slope.
        curv_rtol: the greatest slope at the end, in units of that at the start.
        approx_dec_rtol: the greatest relative rise of the loss where its slope is the criterion; None: never.
        stepsize_precision: the least interval of rates that is searched.
        initial_guess_strategy: the first rate: "one" is 1, "keep" is the one of the last step.
    """

    variants: ClassVar = ("optax",)
    grain: ClassVar = "matrix"
    complex_ok: ClassVar = False

    learning_rate: Rate = 1.0
    memory_size: Annotated[int, Within(1)] = 10
    scale_init_precond: bool = True

    class State(NamedTuple):
        steps: Exact  # s
        changes: Exact  # y
        last_params: Exact
        last_gradient: Exact
        grad: Exact | None = None

    class Scalars(NamedTuple):
        scale: Any  # of the gradient, in H g
        of_steps: Any  # the coefficients of s in H g
        of_changes: Any  # and of y
        steps_changes: Any  # products of s and y
        changes_changes: Any  # and of y and y
        value: Any | None = None
        rate: Any | None = None
        evaluations: Any | None = None

    class Sums(NamedTuple):
        steps_change: Array  # products of all s and the last y
        changes_step: Array  # of all y and the last s
        changes_change: Array
        steps_gradient: Array
        changes_gradient: Array
        gradient: Array  # of g and g

    def init(self, p: Array) -> State:
        zeros = jnp.zeros_like(p)
        memory = jnp.stack([zeros] * self.memory_size)
        last = [jnp.zeros_like(p) for _ in range(2)]
        return self.State(memory, jnp.zeros_like(memory), last[0], last[1], zeros if self.searching else None)

    def scalars(self) -> Scalars:
        few, many = (np.zeros((self.memory_size,) * axes) for axes in (1, 2))
        searched = (math.inf, 1.0, 0.0) if self.searching else (None, None, None)
        return self.Scalars(0.0, few, few, many, many, *searched)

    def place(self, at: Clock) -> Array:
        """Return where the memory has the last pair, in the place of the oldest one."""
        return jnp.maximum(at.t - 2, 0).astype(jnp.int32) % self.memory_size

    def pair(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, Array]:
        """Return the changes since the last update; 0 at the first."""
        since = lambda new, old: jnp.where(at.t > 1, new - old, 0)
        return since(p, s.last_params), since(g, s.last_gradient)

    def share(self, g: Array, p: Array, s: State, at: Clock) -> Sums:
        (step, change), place = self.pair(g, p, s, at), self.place(at)
        steps, changes = s.steps.at[place].set(step), s.changes.at[place].set(change)
        axes = tuple(range(g.ndim))

        def products(memory: Array, x: Array) -> Array:
            over = (tuple(i + 1 for i in axes), axes), ((), ())
            return jax.lax.dot_general(memory, x, over, precision=jax.lax.Precision.HIGHEST)

        with_last = products(steps, change), products(changes, step), products(changes, change)
        return self.Sums(*with_last, products(steps, g), products(changes, g), jnp.sum(g * g))

    def advance(self, scalars: Scalars, at: Clock) -> Scalars:
        sums, last = at.sums, self.place(at)
        products = scalars.steps_changes.at[last].set(sums.changes_step).at[:, last].set(sums.steps_change)
        squares = scalars.changes_changes.at[last].set(sums.changes_change).at[:, last].set(sums.changes_change)
        curvature = jnp.diagonal(products)
        usable = curvature > 0
        weight = jnp.where(usable, 1 / jnp.where(usable, curvature, 1), 0)
        newest_first = (last - jnp.arange(self.memory_size, dtype=jnp.int32)) % self.memory_size
        scale = jnp.ones_like(at.t)
        if self.scale_init_precond:
            first = jnp.minimum(1, 1 / jnp.sqrt(sums.gradient))
            found = curvature[last] / jnp.where(usable[last], squares[last, last], 1)
            scale = jnp.where(usable[last], found, first)

        # The two loops of the method, on products alone: a and b are the coefficients of y and of s.
        def back(a: Array, i: Array) -> tuple[Array, None]:
            return a.at[i].set(weight[i] * (sums.steps_gradient[i] - products[i] @ a)), None

        def forth(b: Array, i: Array) -> tuple[Array, None]:
            along = scale * (sums.changes_gradient[i] - squares[i] @ a) + products[:, i] @ b
            return b.at[i].set(a[i] - weight[i] * along), None

        a, _ = jax.lax.scan(back, jnp.zeros_like(weight), newest_first)
        b, _ = jax.lax.scan(forth, jnp.zeros_like(weight), newest_first[::-1])
        return scalars._replace(
            scale=scale, of_steps=b, of_changes=-scale * a, steps_changes=products, changes_changes=squares
        )

    def update(self, g: Array, p: Array, s: State, at: Clock) -> tuple[Array, State]:
        (step, change), place = self.pair(g, p, s, at), self.place(at)
        steps, changes = s.steps.at[place].set(step), s.changes.at[place].set(change)
        mix = lambda weights, memory: jnp.tensordot(weights, memory, 1, precision=jax.lax.Precision.HIGHEST)
        u = at.scalars.scale * g + mix(at.scalars.of_steps, steps) + mix(at.scalars.of_changes, changes)
        return -at.lr * u, self.State(steps, changes, p, g, s.grad)
