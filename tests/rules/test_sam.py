"""SAM and ASAM beside their float64 references to 1e-12 of the distance travelled, and SAM beside optax's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_keras as jk
from jaxopt_keras import Kernel, Options, rules
from jaxopt_keras.rules import modifiers
from tests.oracles.modifiers import ascent
from tests.rules.test_modifiers import BASES, DECAY, SHAPES, drawn

STEPS, RATE = 12, 0.05
METHODS = {"sam": (modifiers.SAM, {"rho": 0.3}), "asam": (modifiers.ASAM, {"rho": 0.7, "eta": 0.1})}


def problem(seed: int = 7):
    """A loss that is not convex, and its gradients in NumPy."""
    a, b = drawn(seed), drawn(seed + 1)

    def loss(p):
        return sum(jnp.sum(a[n] * jnp.sin(p[n]) + b[n] ** 2 * p[n] ** 2 / 2 + p[n] ** 4 / 4) for n in p)

    def gradient(p):
        return {n: a[n] * np.cos(x) + b[n] ** 2 * x + x**3 for n, x in p.items()}

    return loss, gradient


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("method", METHODS)
def test_beside_the_reference(method: str, base: str):
    (modifier, numbers), (rule, reference), (loss, gradient) = METHODS[method], BASES[base], problem()
    kernel = Kernel(modifier(rule, **numbers), Options(weight_decay=DECAY))
    expected, slots = drawn(0), {n: reference.init(p, n) for n, p in drawn(0).items()}
    ours = {n: jnp.asarray(p) for n, p in drawn(0).items()}
    state = kernel.init(ours)
    for t in range(STEPS):
        ours, state, _ = kernel.minimize(loss, ours, state, donate=False)
        second = gradient(ascent(gradient(expected), expected, **numbers))
        for n, p in expected.items():
            expected[n], slots[n] = reference.update(second[n], p, slots[n], t + 1, RATE, DECAY, n)
        for n, p in ours.items():
            travelled = max(np.max(np.abs(expected[n] - drawn(0)[n]), initial=0), 1e-3)
            np.testing.assert_allclose(p, expected[n], rtol=0, atol=1e-12 * travelled, err_msg=n)


@pytest.mark.usefixtures("jax_defaults")
def test_beside_optax():
    loss, _ = problem()
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.3))
    theirs = optax.contrib.sam(optax.adam(RATE), adversary, opaque_mode=True)
    ours = Kernel(modifiers.SAM(rules.Adam(RATE, variant="optax"), rho=0.3))
    start = {n: jnp.asarray(p, jnp.float32) for n, p in drawn(0).items()}
    ends = []
    for tx in (ours, theirs):
        params, state, update = start, tx.init(start), jax.jit(tx.update, static_argnames="grad_fn")
        gradients = lambda p, _: jax.grad(loss)(p)
        for _ in range(STEPS):
            amounts, state = update(jax.grad(loss)(params), state, params, grad_fn=gradients)
            params = optax.apply_updates(params, amounts)
        ends.append(params)
    for n in SHAPES:
        travelled = np.max(np.abs(ends[1][n] - start[n]), initial=0)
        np.testing.assert_allclose(ends[0][n], ends[1][n], rtol=0, atol=2e-5 * travelled + 1e-7, err_msg=n)


def test_functions_and_classes():
    assert jk.sam(jk.adam(0.1), rho=0.2) == Kernel(modifiers.SAM(rules.Adam(0.1), rho=0.2))
    assert jk.ASAM(jk.Adam(0.1)).rho == 0.5 and jk.SAM(jk.Adam(0.1)).rho == 0.05
    assert "second gradient" in (jk.sam.__doc__ or "")


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e20])
def test_of_extreme_gradients(scale: float):
    """Where the norm is 0, or beyond the range of its square, the second gradient is taken at the parameters."""
    kernel, params = jk.sam(jk.sgd(1.0)), {"w": jnp.array([1.0, -2.0])}
    loss = lambda p: jnp.sum(p["w"])
    grads = {"w": jnp.full(2, scale)}
    params, _ = kernel.step(params, kernel.init(params), grads, value_fn=loss, donate=False)
    assert params["w"].tolist() == [0.0, -3.0]
