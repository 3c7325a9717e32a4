"""A kernel is a value, whatever it is made of: equal to what is made alike. Its numbers are no part of a program."""

import logging
import pickle
import warnings

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


def falling(step):
    return 0.5 / (1 + jnp.asarray(step, jnp.float32))


@every_kind
@pytest.mark.parametrize("given", [True, "learning_rate"], ids=str)
def test_a_scheduled_rate_is_shown_in_the_state(kind, given):
    """As by `optax.inject_hyperparams`: the rate that the last step used, computed anew whatever was assigned."""
    kernel, plain = KINDS[kind](falling, inject_hyperparams=given), KINDS[kind](falling)
    rates = lambda s: [float(x) for _, x in optax.tree_utils.tree_get_all_with_path(s.hyperparams, "learning_rate")]
    params, state = PARAMS, kernel.init(PARAMS)
    tx = optax.inject_hyperparams(optax.sgd)(falling)
    theirs = tx.init(PARAMS)
    assert rates(state) == [float(theirs.hyperparams["learning_rate"])] == [0.5]
    for i, g in enumerate(GRADS):
        assigned = state._replace(hyperparams=jax.tree.map(jnp.zeros_like, state.hyperparams))
        state = assigned if given != True else state  # noqa: E712  # True injects other numbers, which count
        params, moved = kernel.step(params, state, g, donate=False)
        amounts, also = kernel.update(g, state, params)
        theirs = tx.update(g, theirs)[1]
        assert types(moved) == types(state) and rates(moved) == rates(also) == [np.float32(falling(i))]
        assert rates(moved) == [float(theirs.hyperparams["learning_rate"])]
        state = moved
    own = run(plain, PARAMS, GRADS)
    assert_close((params, state._replace(hyperparams={})), own, 1)
    expected = jax.eval_shape(lambda: kernel.init(PARAMS))
    assert types(kernel.init(jax.eval_shape(lambda: PARAMS))) == types(expected)
    with pytest.raises(ValueError, match="`learning_rate` is a schedule, and each step computes it anew"):
        kernel.replaced(state, learning_rate=0.1)
    with pytest.raises(ValueError, match="learning_rate"):
        kernel.replace(learning_rate=0.1)


def test_the_shown_rate_is_that_of_the_last_update():
    """Calls that only accumulate, or are skipped, leave it."""
    kernel = jk.sgd(falling, gradient_accumulation_steps=2, skip_nonfinite=True, inject_hyperparams=True)
    state, shown = kernel.init(PARAMS), []
    nan = jax.tree.map(lambda x: x * jnp.nan, GRADS[0])
    for g in (GRADS[0], GRADS[0], nan, GRADS[0], GRADS[0], GRADS[0]):
        state = kernel.step(PARAMS, state, g, donate=False)[1]
        shown.append(float(state.hyperparams["learning_rate"]))
    assert shown == [0.5, 0.5, 0.5, 0.5, 0.25, 0.25]

    groups = jk.partition({"bias": kernel}, default=jk.adam(falling, inject_hyperparams="learning_rate"))
    state = groups.init(PARAMS)
    for g in GRADS[:2]:
        state = groups.step(PARAMS, state, g, donate=False)[1]
    assert {k: float(v["learning_rate"]) for k, v in state.hyperparams.items()} == {"bias": 0.5, "default": 0.25}
    mixed = jk.partition({"bias": kernel}, default=jk.adam(0.1, inject_hyperparams=True))
    state = mixed.replaced(mixed.init(PARAMS), learning_rate=0.25)
    assert {k: float(v["learning_rate"]) for k, v in state.hyperparams.items()} == {"bias": 0.5, "default": 0.25}


def test_a_scheduled_rate_in_a_checkpoint_and_a_measured_step():
    kernel = jk.adam(falling, inject_hyperparams=True)
    params, state = run(kernel, PARAMS, GRADS)
    flat = jk.checkpoint.to_dict(state)
    restored = jk.checkpoint.from_dict(kernel, params, flat, hyper=True)
    assert_same_bits(restored, state)
    for hyper in (True, False):
        restored = jk.checkpoint.from_dict(kernel, params, flat, hyper=hyper)
        assert_same_bits(*[kernel.step(params, s, GRADS[0], donate=False) for s in (restored, state)])
    _, moved, _ = jk.history.measured_step(kernel, params, restored, GRADS[0])
    assert float(moved.hyperparams["learning_rate"]) == 0.125


# The state of the first is no state of the second: its kernel keeps other slots, or other scalars.
STRANGERS = {
    "rules": (jk.adam(0.1), jk.sgd(0.1), r"with the slots \['momentum', 'velocity'\] too.*keeps none"),
    "more slots": (jk.adam(0.1), jk.sgd(0.1, momentum=0.5), r"with the slots \['velocity'\] too"),
    "fewer slots": (jk.sgd(0.1, momentum=0.5), jk.adam(0.1), r"without the slots \['velocity'\]"),
    "adam, lion": (jk.adam(0.1), jk.lion(0.1), r"with the slots \['velocity'\] too"),
    "factored": (jk.adafactor(0.1), jk.sgd(0.1), r"with the slots .*'velocity'\] too"),
    "fallback": (jk.adam(0.1), jk.adagrad(0.1), r"without the slots \['accumulator'\]"),
    "amsgrad": (jk.adam(0.1, amsgrad=True), jk.adam(0.1), r"with the slots \['velocity_hat'\] too"),
    "centered": (jk.rmsprop(0.1, centered=True), jk.rmsprop(0.1), r"with the slots \['average_gradient'\] too"),
    "use_ema": (jk.adam(0.1, use_ema=True), jk.adam(0.1), "with the slots .* too"),
    "master_weights": (jk.adam(0.1, master_weights="float32"), jk.adam(0.1), "with the slots .* too"),
    "accumulation": (jk.adam(0.1, gradient_accumulation_steps=2), jk.adam(0.1), "with the slots .* too"),
    "scalars": (jk.nadam(0.1), jk.adam(0.1), r"with the scalars \['u_product'\] too"),
    "no scalars": (jk.adam(0.1), jk.nadam(0.1), r"without the scalars \['u_product'\]"),
    "guard": (jk.adam(0.1, skip_nonfinite=True), jk.adam(0.1), r"with the scalars \['skipped'\] too"),
    "no guard": (jk.adam(0.1), jk.adam(0.1, skip_nonfinite=True), r"without the scalars \['skipped'\]"),
    "optax": (jk.adam(0.1), jk.Kernel.from_optax(optax.sgd(0.1)), "with the slots .* too"),
    "frozen": (jk.sgd(0.1, momentum=0.5), jk.frozen(), "with the slots .* too"),
}
WRAPPED = {
    "plain": lambda kernel: kernel,
    "partition": lambda kernel: jk.partition({"bias": kernel}, default=kernel),
    "loss_scaled": lambda kernel: jk.loss_scaled(kernel, 1.0),
    "zero1": lambda kernel: sharding.zero1(kernel, mesh()),
}


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("case", STRANGERS)
def test_the_state_of_another_kernel_is_refused(case, wrapped):
    maker, other, message = STRANGERS[case]
    if wrapped == "loss_scaled" and case in ("guard", "no guard"):
        pytest.skip("loss scaling counts skipped calls too")
    maker, other = WRAPPED[wrapped](maker), WRAPPED[wrapped](other)
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS) if case == "master_weights" else PARAMS
    state = maker.init(params)
    for call in (lambda: other.step(params, state, params, donate=False), lambda: other.update(params, state, params)):
        with pytest.raises(ValueError, match=f"`state` must come from this optimizer.*{message}.*from_dict"):
            call()
    if case in ("rules", "fallback", "optax", "frozen"):  # they have no slot in common
        return
    with warnings.catch_warnings(action="ignore"):
        converted = jk.checkpoint.from_dict(other, params, jk.checkpoint.to_dict(state))
    assert types(other.step(params, converted, params, donate=False)[1]) == types(converted)


@pytest.mark.parametrize("wrapped", [name for name in WRAPPED if name not in ("plain", "zero1")])
def test_the_state_of_a_kernel_without_its_wrapper_is_refused(wrapped):
    kernel = jk.adam(0.1)
    around = WRAPPED[wrapped](kernel)
    for maker, other in ((kernel, around), (around, kernel)):
        state = maker.init(PARAMS)
        with pytest.raises(ValueError, match="Received: one with(out)? the scalars"):
            other.step(PARAMS, state, PARAMS, donate=False)


def test_names_that_are_not_injected():
    kernel = jk.adam(0.1)
    injecting = jk.adam(0.1, inject_hyperparams=["beta_1", "learning_rate"])
    with pytest.raises(ValueError, match=r"`inject_hyperparams` must name .*\['beta_1', .*Received: 'beta'"):
        jk.adam(0.1, inject_hyperparams="beta")
    with pytest.raises(ValueError, match="does not exist, or is off"):
        jk.adam(0.1, inject_hyperparams="weight_decay")
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
