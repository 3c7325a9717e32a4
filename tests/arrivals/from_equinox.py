"""A user of Equinox: a module, a frozen layer, int8 slots in the end."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import jaxopt_keras as jk
from tests.arrivals.data import STEPS, X, Y


def make():
    return eqx.nn.MLP(8, 1, 16, 2, activation=jnp.tanh, key=jax.random.key(0))


def loss(params, rest, x, y):
    return jnp.mean((jax.vmap(eqx.combine(params, rest))(x) - y) ** 2)


def parts(model):
    """The trained arrays, without the first layer, and everything else."""
    trained = jax.tree.map(eqx.is_inexact_array, model)
    trained = eqx.tree_at(lambda m: (m.layers[0].weight, m.layers[0].bias), trained, (False, False))
    return eqx.partition(model, trained)


def theirs():
    params, rest = parts(make())
    tx = optax.lion(1e-3, weight_decay=0.1)
    state = tx.init(params)
    for _ in range(STEPS):
        updates, state = tx.update(eqx.filter_grad(loss)(params, rest, X, Y), state, params)
        params = eqx.apply_updates(params, updates)
    return params


def main(**options):
    params, rest = parts(make())
    kernel = jk.lion(1e-3, weight_decay=0.1, variant="optax", **options)
    state = kernel.init(params)

    @eqx.filter_jit(donate="all-except-first")
    def train_step(x, params, state):
        value, grads = eqx.filter_value_and_grad(loss)(params, rest, x, Y)
        return *kernel.step(params, state, grads), value

    for _ in range(STEPS):
        params, state, _ = train_step(X, params, state)
    assert jnp.array_equal(eqx.combine(params, rest).layers[0].weight, make().layers[0].weight)
    return params, theirs()
