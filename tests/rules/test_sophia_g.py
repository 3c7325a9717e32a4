"""Sophia-G beside the authors' equations in float64, and where its second gradient comes from."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from tests.oracles.of_losses import sophia_g
from tests.rules.test_modifiers import DECAY, drawn
from tests.rules.test_sam import problem

STEPS, RATE = 12, 0.05


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("numbers", [{"hess_interval": 3, "bs": 4.0}, {"hess_interval": 1, "rho": 0.5, "bs": 1.0}])
@pytest.mark.parametrize("way", ["minimize", "step", "update"])
def test_beside_the_reference(numbers: Any, way: str):
    (loss, gradient), (sampled, other) = problem(), problem(3)
    kernel = jk.sophia_g(RATE, beta_1=0.8, beta_2=0.7, **numbers, weight_decay=DECAY)
    hyper = {"beta_1": 0.8, "beta_2": 0.7, **numbers}
    expected = drawn(0)
    slots = {n: sophia_g.init(p) for n, p in expected.items()}
    ours = {n: jnp.asarray(p) for n, p in drawn(0).items()}
    state = kernel.init(ours)
    for t in range(1, STEPS + 1):
        g = gradient(expected)
        for n, p in expected.items():
            expected[n], slots[n] = sophia_g.update(g[n], p, slots[n], t, RATE, wd=DECAY, **hyper)
        q = other(expected)
        slots = {n: sophia_g.after(q[n], slots[n], t, **hyper) for n in slots}
        if way == "minimize":
            ours, state, _ = kernel.minimize(loss, ours, state, second=sampled, donate=False)
        elif way == "step":
            ours, state = kernel.step(ours, state, jax.grad(loss)(ours), value_fn=sampled, donate=False)
        else:
            amounts, state = kernel.update(jax.grad(loss)(ours), state, ours, obj_fn=sampled)
            ours = jax.tree.map(jnp.add, ours, amounts)
        for n, p in ours.items():
            travelled = max(np.max(np.abs(expected[n] - drawn(0)[n]), initial=0), 1e-3)
            np.testing.assert_allclose(p, expected[n], rtol=0, atol=1e-12 * travelled, err_msg=n)


def test_the_second_loss_is_called_now_and_then():
    calls, params = [], jnp.array([1.0, -2.0])
    kernel = jk.sophia_g(0.1, hess_interval=3)
    state = kernel.init(params)

    def sampled(p: Any) -> Any:
        jax.debug.callback(lambda: calls.append(1))
        return jnp.sum(p**2)

    loss = lambda p: jnp.sum(p**4)
    for _ in range(10):
        params, state, _ = kernel.minimize(loss, params, state, second=sampled)
        jax.effects_barrier()
    assert len(calls) == 3  # before the updates 4, 7 and 10


def test_in_the_stateful_face():
    v, optimizer, calls = jk.Variable([1.0, -2.0]), jk.SophiaG(0.1, hess_interval=2, bs=4.0, weight_decay=None), []

    def sampled() -> Any:
        calls.append(1)
        return jnp.sum(v.value**2)

    kernel, params = jk.sophia_g(0.1, hess_interval=2, bs=4.0, weight_decay=None), jnp.array([1.0, -2.0])
    state = kernel.init(params)
    for _ in range(6):
        optimizer.minimize(lambda: jnp.sum(v.value**4), [v], second=sampled)
        params, state, _ = kernel.minimize(
            lambda p: jnp.sum(p**4), params, state, second=lambda p: jnp.sum(p**2), donate=False
        )
    np.testing.assert_allclose(v.value, params, rtol=1e-6)
    assert len(calls) == 2


def test_what_is_refused():
    with pytest.raises(ValueError, match="SophiaG cannot accumulate gradients"):
        jk.sophia_g(gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="`hess_interval` must be in"):
        jk.sophia_g(hess_interval=0)
    with pytest.raises(TypeError, match="`second` must be a function"):
        jk.sophia_g().minimize(lambda p: jnp.sum(p), jnp.ones(2), jk.sophia_g().init(jnp.ones(2)), second=3)
