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

import jaxopt_keras as jk
from jaxopt_keras import IndexedSlices
from tests.laws.cases import (
    ELEMENTWISE,
    RULE_BY_RULE,
    SMALL,
    assert_close,
    assert_same_bits,
    elementwise_cases,
    few_cases,
    gradients,
    kinds,
    operations,
    parameters,
    run,
    slots_at,
)

TABLE = "kernel"
ROWS, COLUMNS = SMALL[TABLE]
# Of every kind: the order is free, a row may come twice, and what is outside is dropped; -1 is outside.
some_indices = st.lists(st.integers(-ROWS - 2, ROWS + 1), min_size=5, max_size=5)


def slices(indices):
    """Whole numbers, whose sums are exact in any order; positive, so that nothing cancels and magnifies rounding."""
    drawn = np.random.default_rng(9).integers(1, 5, (len(indices), COLUMNS))
    return IndexedSlices(jnp.asarray(drawn, jnp.float32), jnp.asarray(indices, jnp.int32), (ROWS, COLUMNS))


def dense(rows):
    g = np.zeros(rows.dense_shape, np.float32)
    for value, index in zip(rows.values, rows.indices.tolist(), strict=True):
        if 0 <= index < ROWS:
            g[index] += value
    return jnp.asarray(g)


@kinds
@settings(max_examples=5)
@given(indices=some_indices)
def test_sparse_means_dense(case, indices):
    kernel, (g,) = case.kernel(), gradients(1)
    sparse, full = g | {TABLE: slices(indices)}, g | {TABLE: dense(slices(indices))}
    assert_close(*(run(kernel, parameters(), [g] * 2) for g in (sparse, full)), 2)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("sparse", ["dense", "lazy"])
def test_indices_of_any_integer_dtype(dtype, sparse, x64):
    """A table of as many rows as the narrow dtypes have numbers: the number of rows itself is none of them."""
    kernel, table, outside = jk.sgd(1.0, sparse=sparse), jnp.zeros((256, 2), jnp.float32), np.array([-1]).astype(dtype)
    indices = jnp.asarray(np.concatenate([np.array([65, 127, 65], dtype), outside]))
    expected = np.zeros((256, 2), np.float32)
    np.subtract.at(expected, [i for i in indices.tolist() if 0 <= i < 256], 1)
    rows = IndexedSlices(jnp.ones((4, 2), jnp.float32), indices, (256, 2))
    new, _ = kernel.step(table, kernel.init(table), rows)
    assert np.array_equal(new, expected)


@few_cases
@settings(max_examples=5)
@given(indices=st.lists(st.integers(0, ROWS), min_size=5, max_size=5))
def test_bcoo_means_the_same(case, indices):
    """Indices past the end are its padding."""
    rows, (g,) = slices(indices), gradients(1)
    bcoo = BCOO((rows.values, rows.indices[:, None]), shape=rows.dense_shape)
    lazy = [case.kernel(sparse="lazy")] if case.rule.grain == "element" else []
    for kernel in (case.kernel(), *lazy):
        assert_close(*(run(kernel, parameters(), [g | {TABLE: x}]) for x in (bcoo, rows)), 1)


@pytest.mark.parametrize("case", [case for case in RULE_BY_RULE if case in ELEMENTWISE], ids=str)
@settings(max_examples=5)
@given(indices=some_indices)
@example(indices=[ROWS] * 5)
def test_lazy_touches_its_rows(case, indices):
    rows, (warm, g) = slices(indices), gradients(2)
    params, state = run(case.kernel(), parameters(), [warm])  # so that every slot is at work
    # Both through XLA, so that the rows are all that differs: RMSprop's centered root magnifies a last place.
    p, s = run(case.kernel(sparse="lazy", engine="xla"), params, [g | {TABLE: rows}], state)
    q, t = run(case.kernel(engine="xla"), params, [g | {TABLE: dense(rows)}], state)

    touched = np.isin(np.arange(ROWS), [i for i in indices if 0 <= i < ROWS])
    take = lambda p, s, which: jax.tree.map(lambda x: x[which], (p[TABLE], slots_at(s, TABLE)))
    assert_close(take(p, s, touched), take(q, t, touched), 2)
    assert_same_bits(take(p, s, ~touched), take(params, state, ~touched))
    assert_close((s.count, s.scalars), (t.count, t.scalars), 2)


@elementwise_cases
def test_lazy_works_on_rows(case):
    kernel, shape = case.kernel(sparse="lazy", clipnorm=0.5), (1000, COLUMNS)
    params, g = {TABLE: jnp.ones(shape)}, {TABLE: dataclasses.replace(slices([1, 2, 3]), dense_shape=shape)}
    jaxpr = jax.make_jaxpr(kernel.step)(params, jax.eval_shape(kernel.init, params), g)
    large = {e.primitive.name for e in operations(jaxpr) if any(v.aval.size >= 1000 for v in e.outvars)}
    assert large == {"scatter"}
