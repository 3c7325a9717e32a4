"""Dynamic loss scaling around any program (Micikevicius et al. 2018, arXiv:1710.03740).

Gradients of a loss that was multiplied by `state.scalars["dynamic_scale"]` are divided by it. Where they are not
finite, nothing moves and the scale is halved; after so many good calls in a row it is doubled.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_keras.engine.programs.around import Around
from jaxopt_keras.engine.stages import guard
from jaxopt_keras.engine.stages.guard import SKIPPED
from jaxopt_keras.engine.state import State
from jaxopt_keras.language.numerics import compute_dtype

SCALE = "dynamic_scale"
GOOD = "step_counter"  # good calls since the scale last changed; both are Keras's names


@dataclass(frozen=True)
class LossScaled(Around):
    """Runs `inner` on gradients that it divides by the scale, which stays within `lowest` and `highest`."""

    initial: float
    growth: int  # calls
    lowest: float
    highest: float

    def init(self, params: Any, hyper: dict[str, Any]) -> State:
        state = self.inner.init(params, hyper)
        mine = {
            SCALE: jnp.full((), self.initial, jnp.float32),
            GOOD: jnp.zeros((), jnp.int32),
            SKIPPED: jnp.zeros((), jnp.int32),
        }
        return state._replace(scalars=mine | state.scalars)

    def step(self, params: Any, state: State, grads: Any, hyper: dict[str, Any], reduce: bool = True) -> Any:
        def proceed(state: State, grads: Any) -> Any:
            return self.inner.step(params, state, grads, hyper, reduce=False)

        return self._call(params, state, grads, reduce, proceed, lambda state: (params, state))

    def update(self, grads: Any, state: State, params: Any, hyper: dict[str, Any], reduce: bool = True) -> Any:
        def proceed(state: State, grads: Any) -> Any:
            return self.inner.update(grads, state, params, hyper, reduce=False)

        def idle(state: State) -> Any:
            shapes, _ = jax.eval_shape(lambda *x: self.inner.update(*x, reduce=False), grads, state, params, hyper)
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), state

        return self._call(params, state, grads, reduce, proceed, idle)

    def averaged(self, params: Any, state: State, hyper: dict[str, Any]) -> Any:
        return self.inner.averaged(params, self._apart(state)[1], hyper)

    def loss_scale(self, state: State) -> Any:
        return state.scalars[SCALE]

    def _apart(self, state: State) -> tuple[dict[str, Any], State]:
        """What is ours of `state`, and the inner program's."""
        ours = {n: x for n, x in state.scalars.items() if n in (SCALE, GOOD)}
        return ours, state._replace(scalars={n: x for n, x in state.scalars.items() if n not in ours})

    def _call(self, params: Any, state: State, grads: Any, reduce: bool, proceed: Any, idle: Any) -> Any:
        ours, state = self._apart(state)
        scale, good = ours[SCALE], ours[GOOD]
        grads = self.inner.summed(params, grads) if reduce else grads
        grads = unscaled(grads, scale)
        finite = guard.is_finite(grads)
        skipped = state.scalars[SKIPPED] + (~finite).astype(jnp.int32)
        # The counter goes in and out where the inner program counts too; its decision comes after this one.
        state = state._replace(scalars=state.scalars | {SKIPPED: skipped})
        out, moved = jax.lax.cond(
            finite, lambda: proceed(self._inside(state), grads), lambda: idle(self._inside(state))
        )
        grows = finite & (good + 1 >= self.growth)
        doubled, halved = jnp.minimum(2 * scale, self.highest), jnp.maximum(scale / 2, self.lowest)
        new = {
            SCALE: jnp.where(finite, jnp.where(grows, doubled, scale), halved),
            GOOD: jnp.where(finite & ~grows, good + 1, 0),
        }
        return out, moved._replace(scalars={SKIPPED: skipped} | moved.scalars | new)

    def _inside(self, state: State) -> State:
        """`state` as the inner program knows it: with the counter only if it counts."""
        return state if self.counts else state._replace(scalars=guard.without_counter(state.scalars))

    @property
    def counts(self) -> bool:
        return guard.is_on(self.inner.options)


def unscaled(grads: Any, scale: Any) -> Any:
    """`grads` of a loss that was multiplied by `scale`, as those of the loss itself, in the arithmetic's dtype."""
    return jax.tree.map(lambda g: _divided(g, scale), grads)


def _divided(g: Any, scale: Any) -> Any:
    if not jnp.issubdtype(getattr(g, "dtype", int), jnp.inexact):  # indices of a sparse gradient, or float0
        return g
    g = g.astype(compute_dtype(g.dtype))
    return g / scale.astype(g.real.dtype)
