"""A zoom line search: a rate with a sufficient decrease of the loss and a small slope."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Point(NamedTuple):
    """A point on a line: the rate that leads there, the loss and its slope along the line."""

    rate: Array
    value: Array
    slope: Array


class Errors(NamedTuple):
    """By how much a point misses each of the two criteria, 0 if it meets it."""

    decrease: Array
    slope: Array


class Search(NamedTuple):
    """The state of a search."""

    evaluations: Array
    point: Point  # the last one
    grads: Any
    low: Point  # between `low` and `high` there is a rate that meets both criteria. The loss is less at `low`.
    high: Point
    reference: Point  # a third point, for a cubic
    safe: Point  # the best point so far with a sufficient decrease
    safe_grads: Any
    found: Array  # whether the interval is found
    done: Array
    failed: Array
    outside: Array  # whether the last loss is not finite


class Zoom(NamedTuple):
    """The zoom line search (Nocedal & Wright 2006, algorithms 3.5 and 3.6), with optax's safeguards.

    From the loss f and its slope s at the rate 0, it looks for a rate a with

        f(a) <= f + slope_rtol a s          or  (2 slope_rtol - 1) s >= f'(a)  and  f(a) <= f + approx_dec_rtol |f|
        |f'(a)| <= curv_rtol |s|

    The rate grows by `increase_factor` until an interval contains such a rate. The interval then shrinks, to the
    minimum of a cubic or a parabola, or to its middle. If it is shorter than `stepsize_precision`, or after
    `max_linesearch_steps` evaluations, the best rate with a sufficient decrease is taken; if there is none, the last
    one, or 0 if the loss is not finite there. The second criterion of a decrease (Hager & Zhang 2006) is for points
    near the minimum, where the loss has no digits left; None: without it.
    """

    max_linesearch_steps: int
    max_learning_rate: Any
    tol: Any
    increase_factor: Any
    slope_rtol: Any
    curv_rtol: Any
    approx_dec_rtol: Any
    stepsize_precision: Any

    def run(self, line: Callable[[Array], tuple[Any, Any, Any]], start: Point, grads: Any, guess: Array) -> Search:
        """Search along a line.

        Args:
            line: returns the loss, its slope and its gradients at a rate. It is traced once.
            start: the point at the rate 0, and its gradients `grads`.
            guess: the first rate.

        Returns:
            The state at the end: `point` is the one that was found, and `grads` its gradients.
        """
        no, count = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
        first = Search(count, start, grads, start, start, start, start, grads, no, no, no, no)

        def body(s: Search) -> Search:
            larger = jnp.where(s.evaluations == 0, guess, self.increase_factor * s.point.rate)
            most = jnp.inf if self.max_learning_rate is None else self.max_learning_rate
            at_most = ~s.found & (larger >= most)
            rate = jnp.where(s.found, self.middle(s), jnp.minimum(larger, most))
            value, slope, grads = line(rate)
            point = Point(rate, value, slope)
            errors = self.errors(point, start)
            return self.following(s, point, grads, errors, at_most)

        end = jax.lax.while_loop(lambda s: ~(s.done | s.failed), body, first)
        keep = end.failed & ((end.safe.rate > 0) | end.outside)
        return select(keep, end._replace(point=end.safe, grads=end.safe_grads), end)

    def errors(self, point: Point, start: Point) -> Errors:
        decrease = point.value - start.value - self.slope_rtol * point.rate * start.slope
        if self.approx_dec_rtol is not None:
            rise = point.value - start.value - self.approx_dec_rtol * jnp.abs(start.value)
            flat = jnp.maximum(point.slope - (2 * self.slope_rtol - 1) * start.slope, rise)
            decrease = jnp.minimum(flat, decrease)
        slope = jnp.abs(point.slope) - self.curv_rtol * jnp.abs(start.slope)
        missed = lambda x: jnp.where(jnp.isnan(x), jnp.inf, jnp.maximum(x, 0))
        return Errors(missed(decrease), missed(slope))

    def middle(self, s: Search) -> Array:
        """Return the next rate in the interval: of a cubic, of a parabola, or the middle, the first that is inside."""
        low, high, third = s.low, s.high, s.reference
        length, least = jnp.abs(high.rate - low.rate), jnp.minimum(low.rate, high.rate)
        inside = lambda x, part: (x > least + part * length) & (x < least + length - part * length)
        b, c = high.rate - low.rate, third.rate - low.rate
        at_b, at_c = high.value - low.value - low.slope * b, third.value - low.value - low.slope * c
        below = (b * c) ** 2 * (b - c)
        first, second = (c**2 * at_b - b**2 * at_c) / below, (b**3 * at_c - c**3 * at_b) / below
        cubic = low.rate + (-second + jnp.sqrt(second * second - 3 * first * low.slope)) / (3 * first)
        parabola = low.rate - low.slope / (2 * (at_b / b**2))
        middle = (low.rate + high.rate) / 2
        return jnp.where(inside(cubic, 0.2), cubic, jnp.where(inside(parabola, 0.1), parabola, middle))

    def following(self, s: Search, new: Point, grads: Any, errors: Errors, at_most: Array) -> Search:
        """Return the state after the evaluation of one more point."""
        before, low, high = s.point, s.low, s.high
        good = jnp.maximum(errors.decrease, errors.slope) <= self.tol
        safe = (errors.decrease <= self.tol) & (~s.found | (new.value < s.safe.value))
        rises = errors.decrease > 0
        # Before the interval is found: between the last point and this one, where the loss or the slope rises.
        ends = rises | ((new.value >= before.value) & (s.evaluations > 0))
        turns = (new.slope >= 0) & ~ends
        wide_low, wide_high = select(turns, (new, before), (before, new))
        found = ends | turns | good
        # Afterwards: this point is one end of the interval.
        above = rises | (new.value >= low.value)
        crosses = (new.slope * (high.rate - low.rate) >= 0) & ~above
        zoomed_low = select(above, low, new)
        zoomed_high = select(above, new, select(crosses, low, high))
        zoomed_reference = select(above | crosses, high, low)
        done = jnp.where(s.found, good, good | (at_most & ~found))
        safe_point, safe_grads = select(safe, (new, grads), (s.safe, s.safe_grads))
        short = s.found & (jnp.abs(high.rate - low.rate) <= self.stepsize_precision) & (safe_point.rate > 0)
        return Search(
            evaluations=s.evaluations + 1,
            point=new,
            grads=grads,
            low=select(s.found, zoomed_low, wide_low),
            high=select(s.found, zoomed_high, wide_high),
            reference=select(s.found, zoomed_reference, wide_low),
            safe=safe_point,
            safe_grads=safe_grads,
            found=s.found | found,
            done=done,
            failed=((s.evaluations + 1 >= self.max_linesearch_steps) | short) & ~done,
            outside=jnp.isinf(errors.decrease),
        )


def select(condition: Array, x: Any, y: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), x, y)
