"""A kernel is a value, whatever it is made of: equal to what is made alike. Its numbers are no part of a program."""

import logging
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.sparse import BCOO

import jaxopt_keras as jk
from jaxopt_keras.pure import sharding
from tests.laws.cases import assert_close, assert_same_bits, draw, gradients, run, types

SHAPES = {"dense": {"kernel": (2, 3), "bias": (3,)}, "scale": ()}
PARAMS, GRADS = draw(SHAPES, 0), gradients(3, SHAPES)


def mesh():
    return jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


# A kernel of every kind, at a rate, with options for the rule whose rate it is.
KINDS = {
    "rule": lambda rate, **o: jk.adamw(rate, **o),
    "schedule free": lambda rate, **o: jk.schedule_free_adamw(rate, **o),
    "partition": lambda rate, **o: jk.partition({"bias": jk.frozen()}, default=jk.adam(rate, **o)),
    "loss_scaled": lambda rate, **o: jk.loss_scaled(jk.adam(rate, **o), 1.0),
    "scaled partition": lambda rate, **o: jk.loss_scaled(jk.partition({"^": jk.sgd(rate, momentum=0.5, **o)}), 1.0),
    "zero1": lambda rate, **o: sharding.zero1(jk.adam(rate, **o), mesh()),
    "offload": lambda rate, **o: jk.adam(rate, offload="pinned_host", **o),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
# Without devices of its own, which `vmap` and pickles have no part in.
portable = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("zero1", "offload")])


@every_kind
def test_kernels_that_differ_in_numbers_share_a_program(kind, caplog):
    """A new kernel takes over an old one's state, and runs at its own numbers, without a new compilation."""
    kernel, other = KINDS[kind](0.1), KINDS[kind](0.3)
    assert kernel != other and kernel.skeleton == other.skeleton and kernel.compiled is other.compiled
    assert kernel.replace(learning_rate=0.3) == other and hash(kernel.replace(learning_rate=0.3)) == hash(other)
    params, state = run(kernel, PARAMS, GRADS[:2])
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        found = other.step(params, state, GRADS[2], donate=False)
    assert [r.getMessage() for r in caplog.records] == []
    assert_same_bits(found, run(KINDS[kind](0.3), params, GRADS[2:], state))
    same = kernel.step(params, state, GRADS[2], donate=False)[0]
    assert not np.array_equal(same["dense"]["kernel"], found[0]["dense"]["kernel"])


@portable
def test_a_pickle_is_equal(kind):
    kernel = KINDS[kind](0.1)
    again = pickle.loads(pickle.dumps(kernel))
    assert again == kernel and hash(again) == hash(kernel) and again.compiled is kernel.compiled


def test_a_kernel_with_an_array_for_a_number_equals_itself_alone():
    kernel, twin = jk.adam(jnp.float32(0.1)), jk.adam(jnp.float32(0.1))
    assert kernel == kernel and kernel != twin and len({kernel, twin}) == 2
    assert kernel.compiled is twin.compiled  # the number is an argument of it
    assert_same_bits(run(kernel, PARAMS, GRADS), run(jk.adam(0.1), PARAMS, GRADS))


@every_kind
@pytest.mark.parametrize("given", [True, "learning_rate"], ids=str)
def test_injected_numbers(kind, given, caplog):
    """They are those of the state: replaced in it without a compilation, and equal to a kernel's own."""
    kernel = KINDS[kind](0.1, inject_hyperparams=given)
    params, state = run(kernel, PARAMS, GRADS[:2])
    rates = optax.tree_utils.tree_get_all_with_path(state, "learning_rate")
    assert len(rates) == 1 and rates[0][1] == np.float32(0.1)
    own_params, own = run(KINDS[kind](0.1), PARAMS, GRADS[:2])
    assert_same_bits((params, state._replace(hyperparams={})), (own_params, own))
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        replaced = kernel.replaced(state, learning_rate=0.3)
        p, s = kernel.step(params, replaced, GRADS[2], donate=False)
    assert [r.getMessage() for r in caplog.records if "broadcast" not in r.getMessage()] == []
    assert types(s) == types(state)
    assert_same_bits((p, s._replace(hyperparams={})), KINDS[kind](0.3).step(own_params, own, GRADS[2], donate=False))


@portable
def test_rates_are_mapped_over(kind):
    rates = jnp.array([0.1, 0.3])
    kernel = KINDS[kind](0.1, inject_hyperparams="learning_rate")
    state = jax.vmap(lambda rate: kernel.replaced(kernel.init(PARAMS), learning_rate=rate))(rates)
    axes = jax.tree.map(lambda _: 0, state)
    found, _ = jax.vmap(lambda s: kernel.step(PARAMS, s, GRADS[0], donate=False), in_axes=(axes,))(state)
    for i, rate in enumerate((0.1, 0.3)):
        own = KINDS[kind](rate)
        expected, _ = own.step(PARAMS, own.init(PARAMS), GRADS[0], donate=False)
        assert_close(jax.tree.map(lambda x, i=i: x[i], found), expected, 1)


def test_names_that_are_not_injected():
    kernel = jk.adam(0.1)
    injecting = jk.adam(0.1, inject_hyperparams=["beta_1", "learning_rate"])
    with pytest.raises(ValueError, match=r"`inject_hyperparams` must name .*\['beta_1', .*Received: 'beta'"):
        jk.adam(0.1, inject_hyperparams="beta")
    with pytest.raises(ValueError, match="is a schedule, or is off"):
        jk.adam(lambda step: 0.1, inject_hyperparams="learning_rate")
    with pytest.raises(TypeError, match="`inject_hyperparams` must be True, or names"):
        jk.adam(0.1, inject_hyperparams=3)
    with pytest.raises(ValueError, match=r"this kernel injects: \['beta_1', 'learning_rate'\]"):
        injecting.step(PARAMS, kernel.init(PARAMS), GRADS[0])
    with pytest.raises(ValueError, match=r"this kernel injects: \[\]"):
        kernel.step(PARAMS, injecting.init(PARAMS), GRADS[0])


@every_kind
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_updates_have_the_dtype_of_the_gradients(kind, dtype):
    """Of whatever dtype the parameters are; `full_precision=True` keeps that of the arithmetic."""
    kernel, grads = KINDS[kind](0.1), jax.tree.map(lambda g: g.astype(dtype), GRADS[0])
    for params in (PARAMS, jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)):
        state = kernel.init(params)
        updates, moved = jax.eval_shape(kernel.update, grads, state, params)
        assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
        assert types(moved) == types(state)
    wide, _ = kernel.update(grads, state, params, full_precision=True)
    assert {u.dtype for u in jax.tree.leaves(wide)} == {jnp.dtype(jnp.float32)}
    narrow, _ = kernel.update(grads, state, params)
    assert_same_bits(narrow, jax.tree.map(lambda u: u.astype(dtype), wide))


def test_updates_of_sparse_and_missing_gradients():
    params = {"t": jnp.ones((4, 2)), "w": jnp.ones(2)}
    values = jnp.ones((1, 2), jnp.bfloat16)
    kernel = jk.sgd(0.5)
    for rows in (
        jk.IndexedSlices(values, jnp.array([1]), (4, 2)),
        BCOO((values, jnp.array([[1]])), shape=(4, 2)),
    ):
        updates, _ = kernel.update({"t": rows, "w": None}, kernel.init(params), params)
        assert updates["w"] is None and updates["t"].dtype == jnp.bfloat16
        np.testing.assert_array_equal(updates["t"][1], -0.5)


@every_kind
@pytest.mark.parametrize("given", [True, False], ids=["params", "no params"])
def test_none_gradients(kind, given):
    """A gradient None gives an update None, with parameters and without; other updates do not change."""
    if not given and kind in ("rule", "schedule free"):
        pytest.skip("it reads the parameters")
    kernel = KINDS[kind](0.1)
    state, grads = kernel.init(PARAMS), GRADS[0] | {"scale": None}
    updates, moved = kernel.update(grads, state, PARAMS if given else None)
    expected, whole = kernel.update(GRADS[0], state, PARAMS)
    assert updates["scale"] is None and types(moved) == types(state)
    assert_close(updates["dense"], expected["dense"], 1)
    for name, tree in state.slots.items():
        assert_same_bits(moved.slots[name]["scale"], tree["scale"])
        assert_close(moved.slots[name]["dense"], whole.slots[name]["dense"], 1)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "offload"])  # JAX makes no zeros in host memory
def test_a_state_can_be_reset(kind):
    """Zeros in the place of everything: a fresh start where slots begin as zeros, and finite numbers everywhere."""
    kernel = KINDS[kind](0.1)
    params, state = run(kernel, PARAMS, GRADS)
    reset = jax.tree.map(jnp.zeros_like, state)
    assert types(reset) == types(state)
    if "scale" in kind:  # whose scale is a part of the state, as the names say
        reset = reset._replace(scalars=kernel.init(params).scalars)
    if kind != "schedule free":
        assert_same_bits(jax.tree.map(np.asarray, reset), jax.tree.map(np.asarray, kernel.init(params)))
    moved, _ = kernel.step(params, reset, GRADS[0], donate=False)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(moved))


@every_kind
def test_optax_finds_its_way_in_a_state(kind):
    kernel = KINDS[kind](0.1)
    params, state = run(kernel, PARAMS, GRADS)
    assert int(optax.tree_utils.tree_get(state, "count")) == len(GRADS)
    is_leaf = lambda x: isinstance(x, optax.MaskedNode)
    paths = jax.tree_util.tree_map_with_path(lambda path, _: jax.tree_util.keystr(path), params)
    mapped = optax.tree_map_params(kernel, lambda x, path: x if is_leaf(x) else path, state, paths, is_leaf=is_leaf)
    for name, tree in state.slots.items():
        expected = jax.tree.map(lambda x, path: x if is_leaf(x) else path, tree, paths, is_leaf=is_leaf)
        assert mapped.slots[name] == expected
    assert_same_bits(mapped.scalars, state.scalars)


def test_traced_numbers_are_not_cached():
    """A number that is traced may be used in an inner trace first, and in the outer one after that."""

    def trained(beta):
        kernel, params = jk.adam(0.1, beta_1=beta), {"w": jnp.ones(3)}
        grads, state = {"w": jnp.ones(3)}, jk.adam(0.1).init(params)
        step = lambda carry, _: (kernel.step(*carry, grads), None)
        carry, _ = jax.lax.scan(step, (params, state), None, length=2)
        return kernel.step(*carry, grads)[0]["w"]

    kernel, params = jk.adam(0.1, beta_1=0.5), {"w": jnp.ones(3)}
    state = kernel.init(params)
    for _ in range(3):
        params, state = kernel.step(params, state, {"w": jnp.ones(3)})
    assert_close(jax.jit(trained)(jnp.float32(0.5)), params["w"], 3)
