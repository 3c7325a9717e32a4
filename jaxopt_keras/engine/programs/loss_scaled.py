"""Dynamic loss scaling around a program (Micikevicius et al. 2018, arXiv:1710.03740).

The loss was multiplied by `state.scalars["dynamic_scale"]`, and gradients are divided by it. If they are not finite,
the call updates nothing and the scale is halved; after `growth` finite calls in a row it is doubled.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_keras.engine import second
from jaxopt_keras.engine.given import EMPTY, FLUSH, FUNCTION, LOSS, found, zeroed
from jaxopt_keras.engine.gradients import unscaled
from jaxopt_keras.engine.plan import Plan, cond_notes
from jaxopt_keras.engine.programs.around import Around
from jaxopt_keras.engine.stages import guard
from jaxopt_keras.engine.stages.accumulate import without
from jaxopt_keras.engine.stages.branches import branch
from jaxopt_keras.engine.stages.guard import SKIPPED
from jaxopt_keras.engine.state import State
from jaxopt_keras.engine.state_check import check_names
from jaxopt_keras.language.places import platform
from jaxopt_keras.language.sparse import is_sparse

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
        return state._replace(scalars=first_scalars(self.initial) | state.scalars)

    def describe(self, params: Any, state: Any = None) -> Plan:
        plan: Plan = self.inner.describe(params, state)
        return plan.noted(cond_notes(["`loss_scaled` decides around the step"] if platform() != "tpu" else []))

    def call(self, params: Any, state: State, grads: Any, hyper: dict[str, Any], reduce: bool, write: bool) -> Any:
        check_names("scalars", (n for n in state.scalars if n in (SCALE, GOOD, SKIPPED)), (SCALE, GOOD, SKIPPED))
        scale, good = state.scalars[SCALE], state.scalars[GOOD]
        grads, hyper = self.inner.summed(params, grads, hyper, reduce)
        grads, hyper = unscaled(grads, scale), _unscaled_loss(hyper, scale)
        finite = guard.is_finite(grads)
        skipped = state.scalars[SKIPPED] + (~finite).astype(jnp.int32)
        # The inner program may count skipped calls too, with the same counter: its guard decides after this one.
        counter = {SKIPPED: skipped} if guard.is_on(self.inner.options) else {}
        state = state._replace(scalars=without(state.scalars, SCALE, GOOD, SKIPPED) | counter)

        def proceed(grads: Any = grads, hyper: Any = hyper) -> Any:
            return self.inner.call(params, state, grads, hyper, reduce=False, write=write)

        def idle() -> Any:
            if write:
                return params, state
            amounts, _ = jax.eval_shape(proceed, grads)
            return jax.tree.map(jnp.zeros_like, amounts), state

        rows = any(map(is_sparse, jax.tree.leaves(grads, is_leaf=is_sparse)))
        # On a TPU the inner program selects its results, so that they are in its kernels, unless that read every row.
        inside = found(hyper, FLUSH) is not None or (platform() == "tpu" and not rows)
        if not inside:
            out, moved = branch(finite, proceed, idle)
        else:  # a call, or the end of a window, without gradients that are not finite
            out, moved = proceed(zeroed(finite, grads), self.inner.offered(hyper, {EMPTY: ~finite}))
        grows = finite & (good + 1 >= self.growth)
        doubled, halved = jnp.minimum(2 * scale, self.highest), jnp.maximum(scale / 2, self.lowest)
        new = {
            SCALE: jnp.where(finite, jnp.where(grows, doubled, scale), halved),
            GOOD: jnp.where(finite & ~grows, good + 1, 0),
        }
        if (absent := found(hyper, EMPTY)) is not None:  # no call of the loss
            new = {SCALE: jnp.where(absent, scale, new[SCALE]), GOOD: jnp.where(absent, good, new[GOOD])}
        return out, moved._replace(scalars={SKIPPED: skipped} | moved.scalars | new)

    def points(self, params: Any, state: State, grads: Any, hyper: Any) -> tuple[Any, Any]:
        inner: Any = self.inner
        scale = state.scalars[SCALE]
        return inner.points(params, state, unscaled(grads, scale), _unscaled_loss(hyper, scale))

    def loss_scale(self, state: State) -> Any:
        return state.scalars[SCALE]


def _unscaled_loss(hyper: Any, scale: Any) -> Any:
    """Return the run-time values, of groups too, with the loss and those of the loss function divided by the scale."""
    if isinstance(hyper, list):
        return [_unscaled_loss(x, scale) for x in hyper]
    if not isinstance(hyper, dict):
        return hyper
    divide = {LOSS: unscaled, FUNCTION: second.scaled}
    return {name: divide.get(name, _unscaled_loss)(x, scale) for name, x in hyper.items()}


def first_scalars(initial: float) -> dict[str, Any]:
    """Return the scale and the counters before the first call."""
    counters = {name: jnp.zeros((), jnp.int32) for name in (GOOD, SKIPPED)}
    return {SCALE: jnp.full((), initial, jnp.float32)} | counters
