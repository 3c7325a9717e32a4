"""The first call of a step does some work once for equal arrays: counted, not timed."""

import gc
import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from benchmarks.workloads import gpt2
from jaxopt_keras.engine.native import native, unavailable
from jaxopt_keras.engine.native.fusion import Fusion
from jaxopt_keras.engine.native.ir import trace_of
from jaxopt_keras.rules.adam import Adam

needs_loops = pytest.mark.skipif(bool(unavailable()), reason=unavailable())
EQUAL = {f"w{i:03d}": jax.ShapeDtypeStruct((64, 64), jnp.float32) for i in range(100)}
GPT2 = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in gpt2().items()}


@pytest.fixture
def analysed(monkeypatch):
    """The regions whose loops are built, by their number of elements."""
    found = Counter()

    def counted(self, region, *rest):
        found[region.count] += 1
        return loops(self, region, *rest)

    loops = Fusion._loops
    monkeypatch.setattr(Fusion, "_loops", counted)
    return found


def step_of(kernel, params):
    """Trace the first step on `params`."""
    hyper = kernel.hyper()
    state = jax.eval_shape(kernel.program.init, params, hyper)
    return jax.make_jaxpr(kernel.program.step)(params, state, params, hyper)


@needs_loops
@pytest.mark.parametrize("options", [{}, {"state_dtype": "int8"}, {"global_clipnorm": 1.0}], ids=str)
def test_equal_arrays_are_analysed_once(options, analysed):
    step_of(jk.adamw(1e-3, weight_decay=0.01, engine="native", **options), EQUAL)
    assert analysed[64 * 64] == 1, f"Received: {analysed}"


@needs_loops
@pytest.mark.parametrize("options", [{}, {"state_dtype": "int8"}], ids=str)
def test_a_model_costs_its_different_shapes(options, analysed):
    """GPT-2 has 148 arrays of 9 shapes; one of two axes and one of one may have the same number of elements."""
    step_of(jk.adamw(1e-3, weight_decay=0.01, engine="native", **options), GPT2)
    sizes = Counter(math.prod(shape) for shape in set(gpt2().values()))
    assert {n: analysed[n] for n in sizes} == sizes


@needs_loops
@pytest.mark.parametrize("options", [{}, {"state_dtype": "int8"}, {"use_ema": True}], ids=str)
def test_a_state_is_checked_by_one_parameter_of_each_kind(options, monkeypatch):
    made = []

    def counted(self, p):
        made.append(p.shape)
        return init(self, p)

    kernel = jk.adamw(1e-3, **options)
    state = jax.eval_shape(kernel.program.init, GPT2, kernel.hyper())
    init = Adam.init
    monkeypatch.setattr(Adam, "init", counted)
    jax.make_jaxpr(kernel.program.step)(GPT2, state, GPT2, kernel.hyper())
    assert len(set(made)) == len({*gpt2().values()})
    assert max(Counter(made).values()) <= 2  # once for its form, once to know what is zero


def test_a_parameter_of_another_rule_is_another_kind():
    """Two arrays of one shape, one of which Muon leaves to Adam: the slots of the second are checked too."""
    params = {"a": jnp.ones((4, 4)), "b": jnp.ones((4, 4))}
    kernel, other = jk.muon(1e-3, matrices={"b": None}), jk.muon(1e-3)
    state, wrong = kernel.init(params), other.init(params)
    kernel.step(params, state, params, donate=False)
    with pytest.raises(ValueError, match="of `b`"):
        kernel.step(params, wrong, params, donate=False)


@needs_loops
@pytest.mark.parametrize(
    "others",
    [
        lambda x: x * 3.0,  # another number
        lambda x: x + 2.0,  # another operation
        lambda x: jnp.sum(x * 2.0),  # a total
        lambda x: (x * 2.0).astype(jnp.bfloat16),  # another dtype
        lambda x: (x * 2.0, x * x),  # another output
    ],
)
def test_arrays_with_other_equations_keep_their_own(others):
    function = lambda a, b, c: (a * 2.0, others(b), c * 2.0)
    arrays = [jnp.arange(6.0) + k for k in range(3)]
    trace, _ = trace_of(function, *arrays)
    assert len(Fusion(trace).forms) == 2
    jax.tree.map(np.testing.assert_array_equal, jax.jit(native(function, strict=True))(*arrays), function(*arrays))


@needs_loops
def test_values_that_others_read_are_part_of_the_form():
    """The same equations on `a` and `b`, of which one more is a result for `b`; and each has its own scalar."""

    def function(a, b, s, t):
        x, y = a * s, b * t
        return x + 1.0, y, y + 1.0

    arrays = jnp.arange(5.0), jnp.arange(5.0) + 7, jnp.float32(2), jnp.float32(3)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(native(function, strict=True))(*arrays), function(*arrays))


@needs_loops
def test_arrays_filled_with_a_scalar_are_made_in_their_order():
    """One is a reshape of the other, and read first. Under `vmap` XLA runs the equations of loops in their order."""

    def function(x, s):
        filled = jnp.broadcast_to(s, (2, 3))
        flat = x.reshape(6) * filled.reshape(6)
        return flat, x + filled

    x, s = jnp.arange(24.0).reshape(4, 2, 3), jnp.arange(4.0) + 2
    wanted = jax.vmap(function)(x, s)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(jax.vmap(native(function)))(x, s), wanted)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(native(function))(x[1], s[1]), function(x[1], s[1]))


@pytest.mark.parametrize("is_on", [True, False])
def test_the_garbage_collector_is_as_it_was(is_on):
    def function(x):
        assert not gc.isenabled()
        if x.ndim:
            raise ZeroDivisionError
        return x + 1

    try:
        (gc.enable if is_on else gc.disable)()
        native(function)(jnp.float32(1))
        assert gc.isenabled() == is_on
        with pytest.raises(ZeroDivisionError):
            native(function)(jnp.ones(3))
        assert gc.isenabled() == is_on
    finally:
        gc.enable()
