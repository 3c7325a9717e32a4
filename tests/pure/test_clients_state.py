"""Patterns of JAX programs that change the state of an optimizer, or use the optimizer as a value.

As in `test_clients.py`, ours is compared with optax's if optax has the same.
"""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization
from flax.training import train_state
from optax import tree_utils

import jaxopt_keras as jk
from tests.pure.clients import OURS, PARAMS, THEIRS, X, Y, alike, floats, loss_of, mesh, near, same, slot, trained

pytestmark = pytest.mark.usefixtures("jax_defaults")  # the libraries' own arithmetic needs implicit promotion

# ---------------------------------------------------------------------------------------------------------------------
# Parameters of 16 bits: both branches of a `cond` must be of one type, so updates have the gradients' dtype

BF16 = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)


class Spikes(NamedTuple):
    losses: Any
    count: Any
    inner: Any


def skip_spikes(inner, window=4):
    """MaxText's way: a step whose loss is far above the last ones' is no step."""

    def init(params):
        return Spikes(jnp.zeros(window), jnp.int32(0), inner.init(params))

    def update(grads, state, params=None, *, loss):
        spike = (state.count >= 2) & (loss > 2 * jnp.max(state.losses))
        skipped = lambda: (jax.tree.map(jnp.zeros_like, grads), state.inner)
        updates, moved = jax.lax.cond(spike, skipped, lambda: inner.update(grads, state.inner, params))
        losses = state.losses.at[state.count % window].set(jnp.where(spike, 0.0, loss))
        return updates, Spikes(losses, state.count + 1, moved)

    return optax.GradientTransformationExtraArgs(init, update)


def in_float32(tx):
    """`tx` with the arithmetic and the state of a kernel: optax keeps both in bfloat16."""
    cast = lambda tree, dtype: jax.tree.map(lambda x: x.astype(dtype), tree)

    def update(grads, state, params=None, **extra):
        updates, state = tx.update(cast(grads, jnp.float32), state, cast(params, jnp.float32), **extra)
        return cast(updates, jnp.bfloat16), state

    return optax.GradientTransformationExtraArgs(lambda params: tx.init(cast(params, jnp.float32)), update)


LOW = {
    "skip_spikes": (lambda tx: skip_spikes(tx), True),
    "skip_spikes, frozen": (
        lambda tx: skip_spikes(optax.multi_transform({"a": tx, "b": optax.set_to_zero()}, {"dense": "a", "out": "b"})),
        True,
    ),
    "apply_if_finite": (lambda tx: optax.apply_if_finite(tx, 3), False),
    "conditionally_transform": (lambda tx: optax.conditionally_transform(tx, lambda step: step % 2 == 0), False),
    "conditionally_mask": (lambda tx: optax.conditionally_mask(tx, lambda step: step % 2 == 0), False),
}


@pytest.mark.parametrize("name", LOW)
def test_conditional_steps_in_bfloat16(name):
    wrapped, takes_loss = LOW[name]

    def run(tx):
        tx, params = wrapped(tx), BF16
        state = tx.init(params)

        @jax.jit
        def step(params, state, factor):
            loss, grads = jax.value_and_grad(lambda p: factor * loss_of(p))(params)
            extra = {"loss": loss.astype(jnp.float32)} if takes_loss else {}
            updates, state = tx.update(grads, state, params, **extra)
            assert jax.tree.all(jax.tree.map(lambda u, g: u.dtype == g.dtype, updates, grads))
            return optax.apply_updates(params, updates), state

        for factor in (1.0, 1.0, 100.0, 1.0):
            params, state = step(params, state, factor)
        return jax.tree.map(lambda p: p.astype(jnp.float32), params)

    near(run(OURS.adamw(0.05)), run(in_float32(THEIRS.adamw(0.05))), rtol=2**-8)


# ---------------------------------------------------------------------------------------------------------------------
# Masks of optax, True where a parameter decays. Ours are their opposites: True where it is excluded

EXCLUDED = {"dense": {"kernel": False, "bias": True}, "out": {"kernel": True}}
MASKS = {
    "patterns": ["bias", "^out/"],
    "function of a path": lambda path, p: path.endswith("bias") or path.startswith("out/"),
    "tree": EXCLUDED,
    "prefix of a tree": {"dense": {"kernel": False, "bias": True}, "out": True},
    "function of the parameters": lambda params: jax.tree.map(lambda p: p.shape != (3, 8), params),
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks_of_the_decay(kind):
    """`exclude_from_weight_decay` takes regular expressions, a function `(path, p)`, and optax's kinds of masks:
    a tree of bools like the parameters (or a prefix of one), or a function of one argument, the parameters, to it."""
    theirs = THEIRS.adamw(0.05, mask=jax.tree.map(lambda excluded: not excluded, EXCLUDED))
    ours = OURS.adamw(0.05, exclude_from_weight_decay=MASKS[kind])
    assert hash(ours) == hash(OURS.adamw(0.05, exclude_from_weight_decay=MASKS[kind]))
    near(trained(ours)[0], trained(theirs)[0])
    params, _ = ours.step(PARAMS, ours.init(PARAMS), jax.grad(loss_of)(PARAMS), donate=False)
    near(params, trained(theirs, steps=1)[0])


def test_a_mask_of_other_parameters_is_refused():
    kernel = OURS.adamw(0.05, exclude_from_weight_decay={"dense": {"kernel": True}})
    with pytest.raises(ValueError, match="`exclude_from_weight_decay` must"):
        trained(kernel, steps=1)


# ---------------------------------------------------------------------------------------------------------------------
# A state as a tree of arrays


low = floats(lambda x: x.astype(jnp.bfloat16))
CHANGES = {
    "reset": (lambda state: jax.tree.map(jnp.zeros_like, state), 1e-6),
    "halved": (floats(lambda x: x / 2), 1e-6),
    "rounded": (lambda state: floats(lambda x: x.astype(jnp.float32))(low(state)), 1e-6),
    "kept in bfloat16": (low, 2e-3),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_states(name):
    """A change of all (float) leaves of a state affects the memory of the algorithm only, not its numbers."""
    change, atol = CHANGES[name]

    def run(library):
        tx = library.adamw(0.05)
        params, state = trained(tx)
        return trained(tx, params, change(state), steps=2)[0]

    near(run(OURS), run(THEIRS), atol=atol)


@alike
def test_averaged_states(library):
    """Population and federated code averages states."""
    tx = library.adam(0.05)
    (params, a), (_, b) = trained(tx), trained(tx, loss=lambda p: loss_of(p, X, -Y))
    mean = jax.tree.map(lambda a, b: (a + b) / 2 if jnp.issubdtype(a.dtype, jnp.floating) else a, a, b)
    return trained(tx, params, mean)[0]


@alike
def test_reset_of_some_units(library):
    """Moments of dormant units start anew: a mask like the parameters, and a state."""
    tx = library.adam(0.05)
    params, state = trained(tx)
    masks = jax.tree.map(lambda p: jnp.arange(p.size).reshape(p.shape) % 3 == 0, params)
    state = tree_utils.tree_map_params(tx, lambda x, mask: jnp.where(mask, 0, x), state, masks)
    return trained(tx, params, state)[0], slot(state, library.first)


@alike
def test_logged_norms(library):
    tx = library.adam(0.05)
    _, state = trained(optax.chain(optax.clip_by_global_norm(1.0), tx))
    moments = [optax.tree.norm(slot(state, name)) for name in (library.first, library.second)]
    everything = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    return moments, optax.tree.norm(everything), len(jax.tree.leaves(state)), slot(state, "count")


def test_slots_are_trees_like_the_parameters():
    state = OURS.adam(0.1).init(PARAMS)
    assert state._fields == ("count", "hyperparams", "scalars", "slots")
    assert state.count.dtype == jnp.int32 and state.hyperparams == {} and state.scalars == {}
    assert slot(state, "momentum") is state.slots["momentum"] and slot(state, "learning_rate") is None
    same(state.slots["velocity"], jax.tree.map(jnp.zeros_like, PARAMS))
    nested = tree_utils.tree_set(optax.chain(OURS.adam(0.1)).init(PARAMS), momentum=PARAMS)
    same(slot(nested, "momentum"), PARAMS)


def test_flax_serialization():
    kernel = OURS.adamw(0.05, inject_hyperparams=True)
    params, state = trained(kernel)
    as_dict = serialization.to_state_dict(state)
    same(as_dict["slots"]["momentum"]["dense"], state.slots["momentum"]["dense"])
    same(serialization.from_state_dict(kernel.init(PARAMS), as_dict), state)
    read = serialization.from_bytes(kernel.init(PARAMS), serialization.to_bytes(state))
    same(trained(kernel, params, jax.tree.map(jnp.asarray, read)), trained(kernel, params, state))


def test_orbax(tmp_path):
    checkpoint = pytest.importorskip("orbax.checkpoint")
    kernel = optax.chain(optax.clip_by_global_norm(1.0), OURS.adam(0.05))
    params, state = trained(kernel)
    with checkpoint.StandardCheckpointer() as files:
        files.save(tmp_path / "state", state)
        files.wait_until_finished()
        read = files.restore(tmp_path / "state", jax.eval_shape(kernel.init, PARAMS))
    same(read, state)
    same(trained(kernel, params, read), trained(kernel, params, state))


# ---------------------------------------------------------------------------------------------------------------------
# The numbers are the kernel's


def test_a_kernel_with_other_numbers_continues_with_them():
    def run(library):
        params, state = trained(library.adam(0.05))
        return trained(library.adam(0.2), params, state)[0]

    near(run(OURS), run(THEIRS))
    params, state = trained(OURS.adam(0.05))
    stepped, _ = OURS.adam(0.2).step(params, state, jax.grad(loss_of)(params), donate=False)
    near(stepped, trained(OURS.adam(0.2), params, state, steps=1)[0])
    with pytest.raises(ValueError, match="`learning_rate`.*inject_hyperparams"):
        OURS.adam(0.05).replaced(state, learning_rate=0.1)


def test_numbers_in_the_state_change_without_compiling():
    traces, kernel = [], OURS.adam(0.05, inject_hyperparams=["learning_rate", "beta_1"])

    @jax.jit
    def step(params, state):
        traces.append(1)
        updates, state = kernel.update(jax.grad(loss_of)(params), state, params)
        return optax.apply_updates(params, updates), state

    params, state = step(PARAMS, kernel.init(PARAMS))
    assert sorted(state.hyperparams) == ["beta_1", "learning_rate"]
    params, state = step(params, kernel.replaced(state, learning_rate=0.2))
    assert float(slot(state, "learning_rate")) == np.float32(0.2)
    params, state = step(params, tree_utils.tree_set(state, learning_rate=jnp.float32(0.01)))
    assert len(traces) == 1
    wanted, moved = PARAMS, None
    for rate in (0.05, 0.2, 0.01):
        wanted, moved = trained(THEIRS.adam(rate), wanted, moved, steps=1)
    near(params, wanted)
    everything = OURS.adam(0.05, inject_hyperparams=True).init(PARAMS)
    assert {"learning_rate", "beta_1", "beta_2", "epsilon"} <= everything.hyperparams.keys()


def test_equal_kernels_are_one_static_argument():
    traces = []

    @functools.partial(jax.jit, static_argnames="tx")
    def step(tx, params, state):
        traces.append(1)
        return tx.update(PARAMS, state, params)

    for rate, count in ((0.1, 1), (0.1, 1), (0.2, 2)):
        kernel = OURS.adam(rate)
        step(kernel, PARAMS, kernel.init(PARAMS))
        assert len(traces) == count

    @jax.jit
    def apply(state):
        traces.append(1)
        return state.apply_gradients(grads=state.params)

    del traces[:]
    for _ in range(3):
        apply(train_state.TrainState.create(apply_fn=loss_of, params=PARAMS, tx=OURS.adam(0.1)))
    assert len(traces) == 1


# ---------------------------------------------------------------------------------------------------------------------
# The protocol

KERNELS = {
    "rule": lambda: OURS.adamw(0.05),
    "injected": lambda: OURS.adamw(0.05, inject_hyperparams=True),
    "partition": lambda: jk.partition({"bias": jk.sgd(0.1)}, default=OURS.adam(0.05)),
    "frozen": lambda: jk.frozen(),
    "loss_scaled": lambda: jk.loss_scaled(OURS.adam(0.05)),
    "zero1": lambda: jk.sharding.zero1(OURS.adam(0.05), mesh()),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_is_a_transformation_and_a_value(name):
    kernel, equal = KERNELS[name](), KERNELS[name]()
    assert isinstance(kernel, optax.GradientTransformationExtraArgs) and isinstance(kernel, jk.Kernel)
    init, update = kernel
    params, grads = PARAMS, jax.tree.map(jnp.ones_like, PARAMS)
    same(update(grads, init(params), params), kernel.update(grads, kernel.init(params), params))
    assert kernel == equal and not kernel != equal and hash(kernel) == hash(equal)
    assert kernel != OURS.adamw(0.06) and kernel != (init, update)
    assert jax.tree.leaves(kernel) == [] and jax.tree.map(lambda x: x, kernel) == kernel
    assert optax.with_extra_args_support(kernel) is kernel
    # Where groups have other slots, optax's own `masked` and `partition` need `is_leaf` too.
    is_leaf = lambda x: isinstance(x, optax.MaskedNode)
    mapped = tree_utils.tree_map_params(kernel, lambda x, p: x, kernel.init(params), params, is_leaf=is_leaf)
    same(mapped, kernel.init(params))


@pytest.mark.parametrize("given", [True, False])
def test_gradients_that_are_none(given):
    """A gradient None gives an update None, with parameters and without; the slots do not change."""
    grads, params = {"a": jnp.ones(3), "b": None}, {"a": jnp.ones(3), "b": jnp.ones(2)}

    def run(library):
        tx = library.sgd(0.1)
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(grads, state, params if given else None)
            assert updates["b"] is None
        return updates["a"]

    near(run(OURS), run(THEIRS))
    updates, state = jax.jit(OURS.adam(0.1).update)(grads, OURS.adam(0.1).init(params))
    assert updates["b"] is None and int(state.count) == 1
    same(state.slots["momentum"]["b"], jnp.zeros(2))


@alike
def test_equinox_with_a_frozen_layer(library):
    """Gradients of the last layer; None for the others, and for what is no array."""
    model = eqx.nn.MLP(3, 2, 8, 1, key=jax.random.key(0))
    last = lambda tree: (tree.layers[-1].weight, tree.layers[-1].bias)
    spec = eqx.tree_at(last, jax.tree.map(lambda _: False, model), replace=(True, True))
    tx = library.sgd(0.1)
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state):
        moving, fixed = eqx.partition(model, spec)
        grads = eqx.filter_grad(lambda m: jnp.mean((jax.vmap(eqx.combine(m, fixed))(X) - Y) ** 2))(moving)
        updates, state = tx.update(grads, state)
        return eqx.apply_updates(model, updates), state

    model, state = step(*step(model, state))
    return jax.tree.leaves(eqx.filter(model, eqx.is_array))


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_whole_equinox_module_is_refused(kernel):
    model = eqx.nn.MLP(3, 2, 8, 1, key=jax.random.key(0))
    with pytest.raises(TypeError, match=r"eqx\.filter\(model, eqx\.is_inexact_array\)"):
        KERNELS[kernel]().init(model)
