"""A user of optax: a chain with a clip, a schedule, accumulation, a decay mask, and a log of the rate."""

import jax
import jax.numpy as jnp
import optax

import jaxopt_keras as jk
from tests.arrivals.data import FIRST, SECOND, STEPS, X, Y


def init():
    return {
        "first": {"kernel": jnp.asarray(FIRST), "bias": jnp.zeros(16)},
        "second": {"kernel": jnp.asarray(SECOND), "bias": jnp.zeros(1)},
    }


def loss(params, x, y):
    hidden = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"])
    return jnp.mean((hidden @ params["second"]["kernel"] + params["second"]["bias"] - y) ** 2)


def decays(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


def theirs():
    rate = optax.cosine_decay_schedule(1e-2, STEPS // 2)
    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(rate, weight_decay=0.1, mask=decays))
    tx = optax.MultiSteps(tx, every_k_schedule=2)
    params = init()
    state = tx.init(params)
    for _ in range(STEPS):
        updates, state = tx.update(jax.grad(loss)(params, X, Y), state, params)
        params = optax.apply_updates(params, updates)
    return params


def main():
    kernel = jk.adamw(
        jk.schedules.CosineDecay(1e-2, STEPS // 2), weight_decay=0.1, epsilon=1e-8, variant="optax",
        exclude_from_weight_decay=["bias$"], global_clipnorm=0.5, gradient_accumulation_steps=2,
    )  # fmt: skip

    @jax.jit(donate_argnums=(0, 1))
    def train(params, state, x, y):
        value, grads = jax.value_and_grad(loss)(params, x, y)
        params, state = kernel.step(params, state, grads)
        return params, state, {"loss": value, "rate": kernel.numbers(state)["learning_rate"]}

    params = init()
    state, log = kernel.init(params), []
    for _ in range(STEPS):
        params, state, seen = train(params, state, X, Y)
        log.append(seen)
    assert int(state.count) == STEPS // 2 and float(log[-1]["rate"]) < 1e-4 < float(log[0]["rate"])
    return params, theirs()
