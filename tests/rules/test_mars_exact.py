"""MARS with the gradient of the new batch at the last parameters, beside its float64 reference to 1e-12."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras import Kernel, Options, rules
from jaxopt_keras.rules import modifiers
from tests.oracles.modifiers import mars_exact, unit
from tests.rules.test_modifiers import BASES, DECAY, drawn
from tests.rules.test_sam import RATE, STEPS, problem


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("base", BASES)
def test_beside_the_reference(base: str, clip: bool):
    (rule, reference), (loss, gradient), numbers = BASES[base], problem(), {"gamma": 0.1, "beta": 0.8}
    kernel = Kernel(modifiers.Mars(rule, **numbers, clip=clip, exact=True), Options(weight_decay=DECAY))
    expected, slots = drawn(0), {n: reference.init(p, n) for n, p in drawn(0).items()}
    last, ours = drawn(0), {n: jnp.asarray(p) for n, p in drawn(0).items()}
    state = kernel.init(ours)

    def scaled(p: Any, x: Any) -> Any:
        return x * loss(p)

    for t in range(1, STEPS + 1):
        scale = 1 + 0.5 * (t % 3)  # each batch has another loss
        ours, state, _ = kernel.minimize(scaled, ours, state, scale, donate=False)
        batch = lambda p, scale=scale: {n: scale * x for n, x in gradient(p).items()}
        seen = mars_exact(batch, last, t, expected, **numbers)
        last = dict(expected)
        for n, p in last.items():
            g = unit(seen[n]) if clip else seen[n]
            expected[n], slots[n] = reference.update(g, p, slots[n], t, RATE, DECAY, n)
        for n, p in ours.items():
            travelled = max(np.max(np.abs(expected[n] - drawn(0)[n]), initial=0), 1e-3)
            np.testing.assert_allclose(p, expected[n], rtol=0, atol=1e-12 * travelled, err_msg=n)


def test_accumulated_equals_mean():
    """The correction is linear, and both gradients of a window are at the same points."""
    params, f = {"w": jnp.array([1.0, -2.0, 0.5])}, lambda p, x: x * jnp.sum(jnp.sin(p["w"]) + p["w"] ** 2)
    one, two = (
        jk.mars(jk.adam(0.1), exact=True, gradient_accumulation_steps=2),
        jk.mars(jk.adam(0.1), exact=True),
    )
    ends = []
    for kernel, xs in ((one, (0.5, 1.5, 1.0, 3.0)), (two, (1.0, 2.0))):
        p, state = params, kernel.init(params)
        for x in xs:
            p, state, _ = kernel.minimize(f, p, state, x, donate=False)
        ends.append(p["w"])
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-6)


def test_names_and_slots():
    exact: Any = jk.mars(jk.adamw(0.1), exact=True)
    assert {*exact.init(jnp.ones(2)).slots} >= {"last_params", "momentum", "velocity"}
    assert Kernel(modifiers.Mars(rules.Adam())).rule.takes == () and exact.rule.takes == ("function",)
    with pytest.raises(ValueError, match="needs the loss function"):
        exact.step(jnp.ones(2), exact.init(jnp.ones(2)), jnp.ones(2))
    around = Kernel(modifiers.Mars(modifiers.SAM(rules.SGD(0.1))))  # the approximate form looks at SAM's gradient
    params = {"w": jnp.array([1.0, 2.0])}
    loss = lambda p: jnp.sum(p["w"] ** 3)
    new, _, _ = around.minimize(loss, params, around.init(params), donate=False)
    g = jax.grad(loss)(params)["w"]
    h = 3 * (params["w"] + 0.05 * g / jnp.linalg.norm(g)) ** 2
    c = h * (1 + 0.025 * 0.95 / 0.05)
    np.testing.assert_allclose(new["w"], params["w"] - 0.1 * c / jnp.linalg.norm(c), rtol=1e-6)
