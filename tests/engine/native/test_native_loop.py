"""A loop is a value: equal where the arithmetic is, and checked after every pass that rewrites it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras.engine.native import unavailable
from jaxopt_keras.engine.native.fusion import Fusion
from jaxopt_keras.engine.native.ir import Constant, trace_of
from jaxopt_keras.engine.native.loop import ARRAY, BLOCK, ELEMENT, Ref, broken, verified
from jaxopt_keras.engine.native.packed_operands import PackedOperands
from jaxopt_keras.engine.native.render_c import render_c

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())


def leaves(kernel, params, grads=None):
    """The loops of a step."""
    state = jax.eval_shape(kernel.program.init, params, kernel.hyper())
    trace, _ = trace_of(kernel.program.bare_step, params, state, params if grads is None else grads, kernel.hyper())
    fusion = Fusion(trace)
    PackedOperands(fusion, dict(zip(trace.outputs, trace.inputs, strict=False)))
    return [leaf for region in fusion.regions if not region.reason for leaf in region.leaves.values()]


def struct(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


BLOCKS = {"w": struct(64, 96), "b": struct(96, 96)}
ROWS = jk.IndexedSlices(jnp.ones((3, 8)), jnp.array([1, 4, 1]), (50, 8))
INT8, INT4 = ([x.loop for x in leaves(jk.adam(state_dtype=form), BLOCKS)] for form in ("int8", "int4"))
NORM, LAZY = leaves(jk.adamw(global_clipnorm=1.0), BLOCKS)[0], leaves(jk.adam(sparse="lazy"), struct(50, 8), ROWS)[0]
PACKED = leaves(jk.adam(flat_state=True), {str(i): struct(5, 7) for i in range(9)})[0]


def test_arrays_of_any_size_share_a_loop():
    assert INT8[0] == INT8[1] and hash(INT8[0]) == hash(INT8[1])
    assert INT8[0] != INT4[0] and render_c(INT8[0]) is render_c(INT8[1])


def test_a_reduction_over_axes_of_length_1_is_no_operation():
    trace, _ = trace_of(lambda x: 2 * jnp.max(jnp.sum(x, -1), (1, 2)), struct(5, 1, 1, 1))
    (region,) = Fusion(trace).regions
    assert [op.name for op in region.leaves[0].loop.operations] == ["mul"]


def test_constants_are_equal_by_their_bits():
    numbers = np.array([0.0, -0.0, np.nan, 1.0], np.float32)
    assert len({Constant.of(x) for x in (*numbers, *numbers, *numbers.astype(np.float64))}) == 8
    np.testing.assert_array_equal([Constant.of(x).value for x in numbers], numbers)
    assert Constant.of(jnp.bfloat16(0.1)).value == jnp.bfloat16(0.1)


def operation(loop, called, **changed):
    """A loop with one operation of this name changed."""
    k = next(k for k, op in enumerate(loop.operations) if op.name == called)
    new = (*loop.operations[:k], loop.operations[k]._replace(**changed), *loop.operations[k + 1 :])
    return replace(loop, operations=new)


def first(loop, side, **changed):
    """A loop with the first of its inputs, outputs or totals changed."""
    values = getattr(loop, side)
    return replace(loop, **{side: (values[0]._replace(**changed), *values[1:])})


WRONG = {
    "read before it is known": [
        operation(INT8[0], "mul", inputs=(Ref("v", 90), Ref("x", 0))),
        first(INT8[0], "outputs", source=Ref("x", 99)),
        first(INT8[0], "outputs", source=Ref("v", -1)),
    ],
    "stage before": [operation(INT8[0], "reduce_max", stage=-1)],
    "packed in bytes": [
        operation(INT4[0], "pack_nibbles", scope=ELEMENT),
        operation(INT4[0], "unpack_nibbles", name="abs"),
    ],
    "other than a reduction": [
        operation(INT8[0], "reduce_max", scope=ELEMENT),
        operation(INT8[0], "sqrt", scope=BLOCK),
        operation(INT8[0], "sqrt", scope=ARRAY),
    ],
    "but no blocks": [replace(INT8[0], block=None)],
    "fewer numbers than its source": [first(INT8[0], "outputs", scope=BLOCK)],
    "another dtype than its source": [
        first(INT8[0], "outputs", dtype="float64"),
        first(NORM.loop, "totals", dtype="float64"),
    ],
    "gathers nothing": [
        replace(LAZY.loop, rows=None),
        replace(LAZY.loop, totals=NORM.loop.totals),
        first(LAZY.loop, "inputs", buffer=0),
        replace(NORM.loop, rows="int32"),
    ],
    "does not update a gathered input": [
        first(LAZY.loop, "outputs", updates=None),
        first(LAZY.loop, "outputs", updates=LAZY.loop.outputs[1].updates),
        first(LAZY.loop, "outputs", updates=77),
        first(INT8[0], "outputs", updates=0),
    ],
}


@pytest.mark.parametrize("rule", WRONG)
def test_each_rule_is_checked(rule):
    assert not any(map(broken, (*INT8, *INT4, NORM.loop, LAZY.loop, PACKED.loop)))
    for loop in WRONG[rule]:
        assert any(rule in each for each in broken(loop)), broken(loop)


MISFITS = {
    "another packed buffer": [replace(PACKED, places={}), replace(PACKED, loop=first(PACKED.loop, "inputs", buffer=5))],
    "another dtype": [replace(PACKED, loop=first(PACKED.loop, "scalars", dtype="int32"))],
    "another size": [replace(NORM, count=NORM.count + 1)],
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_the_arrays_fit_their_loop(misfit):
    for leaf in (NORM, LAZY, PACKED):
        assert verified(leaf) is leaf
    for leaf in MISFITS[misfit]:
        with pytest.raises(ValueError, match=f"made a wrong loop: .*{misfit}"):
            verified(leaf)
