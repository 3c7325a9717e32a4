"""Dynamic loss scaling around a program (Micikevicius et al. 2018, arXiv:1710.03740).

The loss was multiplied by `state.scalars["dynamic_scale"]`, and gradients are divided by it. If they are not finite,
the call updates nothing and the scale is halved; after `growth` finite calls in a row it is doubled.
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
GOOD = "step_counter"  # finite calls since the scale last changed; both are Keras's names


@dataclass(frozen=True)
class LossScaled(Around):
    """Runs `inner` on gradients divided by the scale, which is kept between `lowest` and `highest`."""

    initial: float
    growth: int  # calls
    lowest: float
    highest: float

    def init(self, params: Any, hyper: dict[str, Any]) -> State:
        state = self.inner.init(params, hyper)
        own = {
            SCALE: jnp.full((), self.initial, jnp.float32),
            GOOD: jnp.zeros((), jnp.int32),
            SKIPPED: jnp.zeros((), jnp.int32),
        }
        return state._replace(scalars=own | state.scalars)

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
        return self.inner.averaged(params, self._split(state)[1], hyper)

    def loss_scale(self, state: State) -> Any:
        return state.scalars[SCALE]

    def _split(self, state: State) -> tuple[dict[str, Any], State]:
        """Split `state` into the scalars of loss scaling and the state of the inner program."""
        own = {n: x for n, x in state.scalars.items() if n in (SCALE, GOOD)}
        return own, state._replace(scalars={n: x for n, x in state.scalars.items() if n not in own})

    def _call(self, params: Any, state: State, grads: Any, reduce: bool, proceed: Any, idle: Any) -> Any:
        own, state = self._split(state)
        scale, good = own[SCALE], own[GOOD]
        grads = self.inner.summed(params, grads) if reduce else grads
        grads = unscaled(grads, scale)
        finite = guard.is_finite(grads)
        skipped = state.scalars[SKIPPED] + (~finite).astype(jnp.int32)
        # The inner program may count skipped calls too, with the same counter: its guard decides after this one.
        state = self._inner_state(state._replace(scalars=state.scalars | {SKIPPED: skipped}))
        out, moved = jax.lax.cond(finite, lambda: proceed(state, grads), lambda: idle(state))
        grows = finite & (good + 1 >= self.growth)
        doubled, halved = jnp.minimum(2 * scale, self.highest), jnp.maximum(scale / 2, self.lowest)
        new = {
            SCALE: jnp.where(finite, jnp.where(grows, doubled, scale), halved),
            GOOD: jnp.where(finite & ~grows, good + 1, 0),
        }
        return out, moved._replace(scalars={SKIPPED: skipped} | moved.scalars | new)

    def _inner_state(self, state: State) -> State:
        """Return the state of the inner program, which has the counter of skipped calls only if it has a guard."""
        return state if self.counts else state._replace(scalars=guard.without_counter(state.scalars))

    @property
    def counts(self) -> bool:
        return guard.is_on(self.inner.options)


def unscaled(grads: Any, scale: Any) -> Any:
    """Divide the gradients of a scaled loss by `scale`, in the dtype of the arithmetic."""
    return jax.tree.map(lambda g: _divide(g, scale), grads)


def _divide(g: Any, scale: Any) -> Any:
    if not jnp.issubdtype(getattr(g, "dtype", int), jnp.inexact):  # indices of a sparse gradient, or float0
        return g
    g = g.astype(compute_dtype(g.dtype))
    return g / scale.astype(g.real.dtype)
