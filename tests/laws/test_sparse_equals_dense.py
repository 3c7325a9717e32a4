"""Sparse equals dense: a gradient given as rows means the dense gradient; "lazy" means it on the touched rows alone.

An embedding's gradient is a few rows, in any order, some of them twice. By default the format may not change the
training. Lazily, the touched rows must move as in the dense update, the others not at all, and the work must be in
proportion to the rows: one operation on the whole table is what laziness is to avoid.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.experimental.sparse import BCOO

from jaxopt_keras import IndexedSlices
from tests.laws.cases import SWITCHED, assert_close, assert_same_bits, draw, operations, run, switched_cases

ROWS, COLUMNS, TOUCHED = 7, 3, 6
TABLE = {"table": (ROWS, COLUMNS)}
# Of every kind: the order is free, a row may come twice, -1 is the last row, and what is outside is dropped.
some_indices = st.lists(st.integers(-ROWS - 2, ROWS + 1), min_size=TOUCHED, max_size=TOUCHED)
lazy_cases = pytest.mark.parametrize("case", [c for c in SWITCHED if c.rule.grain == "element"], ids=str)


def rows(indices, seed=9):
    """Values for the indices: whole numbers, whose sums are exact in any order."""
    drawn = np.random.default_rng(seed).integers(-4, 5, (len(indices), COLUMNS))
    return IndexedSlices(jnp.asarray(drawn, jnp.float32), jnp.asarray(indices, jnp.int32), (ROWS, COLUMNS))


def dense(slices):
    g = np.zeros(slices.dense_shape, np.float32)
    for value, index in zip(slices.values, slices.indices, strict=True):
        if -ROWS <= index < ROWS:
            g[index] += value
    return jnp.asarray(g)


def touched(slices):
    return np.unique([i % ROWS for i in slices.indices.tolist() if -ROWS <= i < ROWS]).astype(int)


@switched_cases
@settings(max_examples=5)
@given(indices=some_indices)
def test_sparse_means_dense(case, indices):
    slices = rows(indices)
    inside = rows([i % ROWS for i in indices])  # BCOO has no negative indices
    grads = {
        "slices": slices,
        "dense": dense(slices),
        "bcoo": BCOO((inside.values, inside.indices[:, None]), shape=inside.dense_shape),
        "dense of bcoo": dense(inside),
    }
    params = dict.fromkeys(grads, draw(TABLE, 0)["table"])
    p, s = run(case.kernel(), params, [grads, grads])
    for sparse, full in (("slices", "dense"), ("bcoo", "dense of bcoo")):
        assert_close((p[sparse], s.slots[sparse]), (p[full], s.slots[full]), 2)


@lazy_cases
@settings(max_examples=5)
@given(indices=some_indices)
@example(indices=[ROWS] * TOUCHED)
def test_lazy_touches_its_rows(case, indices):
    options = {"clipnorm": 0.5}
    slices, warm = rows(indices), draw(TABLE, 1)
    params, state = run(case.kernel(**options), draw(TABLE, 0), [warm])  # every slot is at work
    p, s = run(case.kernel(sparse="lazy", **options), params, [{"table": slices}], state)
    expected = run(case.kernel(**options), params, [{"table": dense(slices)}], state)

    these = touched(slices)
    others = np.setdiff1d(np.arange(ROWS), these)
    take = lambda p, s, which: jax.tree.map(lambda x: x[which], (p["table"], s.slots["table"]))  # noqa: E731
    assert_close(take(p, s, these), take(*expected, these), 2)
    assert_same_bits(take(p, s, others), take(params, state, others))
    assert_close((s.step, s.scalars), (expected[1].step, expected[1].scalars), 2)


@lazy_cases
def test_lazy_works_on_rows(case):
    kernel, shape = case.kernel(sparse="lazy", clipnorm=0.5), (1000, COLUMNS)
    params, grads = {"table": jnp.ones(shape)}, {"table": dataclasses.replace(rows([1, 2, 3]), dense_shape=shape)}
    jaxpr = jax.make_jaxpr(kernel.step)(params, kernel.init(params), grads)
    large = {e.primitive.name for e in operations(jaxpr) if any(v.aval.size >= 1000 for v in e.outvars)}
    assert large == {"scatter"}
