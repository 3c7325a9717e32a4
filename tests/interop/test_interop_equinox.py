"""Equinox: modules with `None` in the place of what is no parameter, under its own jit."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_keras as jk

pytestmark = pytest.mark.usefixtures("jax_defaults")

X = jnp.linspace(-1, 1, 15).reshape(5, 3)


class Net(eqx.Module):
    """Layers, a function, an integer array, a parameter called `value` and one that must not move."""

    layers: list
    activation: object
    count: jax.Array
    value: jax.Array
    fixed: jax.Array

    def __init__(self):
        one, two = jax.random.split(jax.random.key(0))
        self.layers = [eqx.nn.Linear(3, 4, key=one), eqx.nn.Linear(4, 2, use_bias=False, key=two)]
        self.activation = jax.nn.relu
        self.count = jnp.arange(3)
        self.value = jnp.float32(2.0)
        self.fixed = jnp.ones(2)

    def __call__(self, x):
        first, last = self.layers
        return last(self.activation(first(x))) * self.value + self.fixed


def is_trained(model):
    """A tree of booleans: floats, but not `fixed`."""
    return eqx.tree_at(lambda m: m.fixed, jax.tree.map(eqx.is_inexact_array, model), False)


def loss_fn(trained, rest):
    return jnp.mean((jax.vmap(eqx.combine(trained, rest))(X) - 1) ** 2)


def by_update(tx):
    """The loop of optax's users."""

    @eqx.filter_jit(donate="all-except-first")
    def step(rest, trained, state):
        loss, grads = eqx.filter_value_and_grad(loss_fn)(trained, rest)
        updates, state = tx.update(grads, state, trained)
        return eqx.apply_updates(trained, updates), state, loss

    return step


def by_step(kernel):
    """The same, with the kernel writing the parameters."""

    @eqx.filter_jit(donate="all-except-first")
    def step(rest, trained, state):
        loss, grads = eqx.filter_value_and_grad(loss_fn)(trained, rest)
        return *kernel.step(trained, state, grads), loss

    return step


def run(make, tx):
    trained, rest = eqx.partition(Net(), is_trained(Net()))
    state, step, losses = tx.init(trained), make(tx), []
    for _ in range(3):
        trained, state, loss = step(rest, trained, state)
        losses.append(float(loss))
    return losses, eqx.filter(eqx.combine(trained, rest), eqx.is_array)


def near(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-6), a, b)


ADAM = jk.adam(0.01, epsilon=1e-8, variant="optax")


@pytest.mark.parametrize("make", [by_update, by_step])
def test_a_filtered_module(make):
    near(run(make, ADAM), run(by_update, optax.adam(0.01)))


def test_groups_by_path():
    kernel = jk.partition({"^layers/0/": jk.frozen(), "^value$": jk.sgd(0.0)}, default=ADAM)
    _, model = run(by_step, kernel)
    start = Net()
    near(model.layers[0], eqx.filter(start.layers[0], eqx.is_array))
    near((model.value, model.fixed), (start.value, start.fixed))
    assert (model.layers[1].weight != start.layers[1].weight).any()
    assert model.count.tolist() == [0, 1, 2]


def test_what_is_not_filtered_is_named():
    with pytest.raises(TypeError, match="Received: `count` of dtype int32|`params` must be a pytree of arrays"):
        ADAM.init(Net())


def test_small_updates_reach_a_module():
    trained = eqx.nn.Linear(4, 4, key=jax.random.key(0), dtype=jnp.bfloat16)
    trained = jax.tree.map(lambda p: jnp.ones_like(p), trained)
    kernel, ones = jk.sgd(1e-3, master_weights="bf16+16"), jax.tree.map(jnp.ones_like, trained)

    @eqx.filter_jit
    def thousand(trained, state):
        return jax.lax.fori_loop(0, 1000, lambda _, both: kernel.step(*both, ones), (trained, state))

    moved, _ = thousand(trained, kernel.init(trained))
    assert all(abs(float(p.max())) <= 5e-3 for p in jax.tree.leaves(moved))
