"""Grain holds: a rule needs of its array what it says it needs, no more and no less.

An `element` rule may be packed with others into one buffer, run on single rows or on a shard; a `leaf` rule may be too,
if its norms are taken elsewhere; a `matrix` rule may not. The engine believes the declaration: a rule that claims too
little structure would be wrong there, in silence, and one that claims too much would be slow.
"""

import jax
import jax.numpy as jnp
import pytest

from jaxopt_keras.engine.core import Now
from jaxopt_keras.engine.cores.leafwise import At
from jaxopt_keras.language.modifier import routed
from tests.laws.cases import RATE, advanced, assert_close, draw, every_case

STEPS = 3
ARRAYS = {"a": (4, 3), "b": (5,), "c": ()}
LARGE = {"matrix": (130, 129)}  # beyond any size from which on a rule might take notice of the shape


class WithoutReductions(At):
    def norm(self, x):
        raise LookupError("norm")

    def rms(self, x):
        raise LookupError("rms")


class Packed(At):
    """The norms of several arrays in one buffer, each at the elements of its array."""

    @classmethod
    def over(cls, now, scalars, before, parts):
        clock = cls.of(now, scalars, before)
        clock.parts = parts
        return clock

    def norm(self, x):
        return jnp.sqrt(self.sums(x))

    def rms(self, x):
        return jnp.sqrt(self.sums(x) / self.sums(jnp.ones_like(x)))

    def sums(self, x):
        return jax.ops.segment_sum(jnp.abs(x) ** 2, self.parts, num_segments=len(ARRAYS))[self.parts]


def steps(case, rule, clock, params, grads):
    """The parameters and the slots, by path, after some updates by the bare rule."""
    slots, scalars = {path: rule.init(p) for path, p in params.items()}, rule.scalars()
    for i, g in enumerate(grads):
        now = Now(jnp.float32(i + 1), RATE, case.options.weight_decay, {})
        arrays = {path: (g[path], p, slots[path]) for path, p in params.items()}
        before, scalars = scalars, advanced(rule, arrays, now, scalars)
        at = clock(now, scalars, before)
        at = at._replace(key=jax.random.key(i)) if rule.takes else at
        ends = {path: rule.update(*x, at) for path, x in arrays.items()}
        params = {path: p + ends[path][0] for path, p in params.items()}
        slots = {path: s for path, (_, s) in ends.items()}
    return {path: (params[path], slots[path]) for path in params}


def alone(p, grads):
    return {"": p}, [{"": g} for g in grads]


def flat(tree):
    return jnp.concatenate([x.ravel() for x in jax.tree.leaves(tree)])


def spread(p, s):
    """The slots of one number for the whole array, at each of its elements."""
    return p, jax.tree.map(lambda x: jnp.broadcast_to(x, p.shape) if x.ndim == 0 else x, s)


def of_shape(case, shape):
    """The rule, or the one that it leaves such arrays to."""
    return routed(case.rule, "", jnp.zeros(shape))


@every_case
def test_grain_is_enough(case):
    rule = of_shape(case, (1,))
    assert rule.grain != "matrix" or type(rule) is type(case.rule)
    if rule.grain == "matrix":
        pytest.skip("claims nothing")
    params, grads = draw(ARRAYS, 0), [draw(ARRAYS, 1 + i) for i in range(STEPS)]
    single = {n: spread(*ended) for n, ended in steps(case, rule, At.of, params, grads).items()}
    expected = jax.tree.map(lambda *parts: flat(parts), *single.values())

    parts = jnp.concatenate([jnp.full(params[n].size, i) for i, n in enumerate(ARRAYS)])
    clock = WithoutReductions.of if rule.grain == "element" else lambda *x: Packed.over(*x, parts)
    joined = steps(case, rule, clock, *alone(flat(params), [flat(g) for g in grads]))
    assert_close(joined[""], expected, STEPS)


@every_case
def test_grain_is_needed(case):
    rule = of_shape(case, LARGE["matrix"])
    p, grads = draw(LARGE, 0)["matrix"], [draw(LARGE, i)["matrix"] for i in (1, 2)]
    if rule.grain == "leaf":
        with pytest.raises(LookupError):
            steps(case, rule, WithoutReductions.of, *alone(p, grads))
    if rule.grain == "matrix":
        vector = alone(p.ravel(), [g.ravel() for g in grads])
        as_vector, _ = steps(case, of_shape(case, p.size), At.of, *vector)[""]
        as_matrix, _ = steps(case, rule, At.of, *alone(p, grads))[""]
        assert jnp.max(jnp.abs(as_vector - as_matrix.ravel())) > 1e-3 * RATE
