"""A step works wherever JAX code does: in a scan, in a condition, in a user's jit, under a gradient.

A training loop that is itself compiled is the fast one, and learned optimizers differentiate through the update. Inside
a jit that donates, the step must take no copy: donated arguments are paired with outputs in order, and a wrong order
would cost as much memory traffic as the step itself.
"""

import re

import jax
import jax.numpy as jnp

from tests.laws.cases import SMALL, assert_close, draw, every_rule, gradients, kinds, parameters, run

STEPS = 4


@kinds
def test_in_scan_and_cond(case):
    kernel, grads = case.kernel(), gradients(STEPS)

    def body(carry, g_and_odd):
        g, odd = g_and_odd
        return jax.lax.cond(odd, lambda: carry, lambda: kernel.step(*carry, g)), None

    @jax.jit
    def train(params, stacked):
        return jax.lax.scan(body, (params, kernel.init(params)), (stacked, jnp.arange(STEPS) % 2 == 1))[0]

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *grads)
    assert_close(train(parameters(), stacked), run(kernel, parameters(), grads[::2]), STEPS)


@kinds
def test_in_a_jit_that_donates(case):
    kernel, params, (g,) = case.kernel(), parameters(), gradients(1)
    given = [(parameters(), kernel.init(params)) for _ in range(2)]
    step = jax.jit(kernel.step, donate_argnums=(0, 1)).lower(*given[0], g).compile()
    aliased = re.findall(r"\{\d*\}: \((\d+), \{\}", step.as_text().splitlines()[0])
    assert [int(i) for i in aliased] == list(range(len(jax.tree.leaves(given[0]))))

    own = kernel.compiled.step_donating.lower(params, given[0][1], g, kernel.hyper()).compile()
    # XLA copies a slot that the step and the slot's update both read as it was. That is the rule's, not the pairing's.
    assert copied_arguments(step) == copied_arguments(own)
    assert not any("params" in name for name in copied_arguments(step))

    expected = run(kernel, params, [g])
    for x in given:
        assert_close(step(*x, g), expected, 1)


def copied_arguments(program):
    """The names of the arguments that are arrays and are copied."""
    text = program.as_text()
    arrays = re.findall(r"(%\S+) = \w+\[\d[^]]*\]\S* parameter\(", text[text.index("ENTRY") :])
    return [x for x in arrays if re.search(rf"\bcopy(-start)?\({re.escape(x)}\)", text)]


@every_rule
def test_under_a_gradient(case):
    kernel, (params, target) = case.kernel(), (draw(SMALL, seed) for seed in (0, 1))

    def loss(p):
        return sum(jnp.sum((x - t) ** 2) for x, t in zip(jax.tree.leaves(p), jax.tree.leaves(target), strict=True))

    def after_one_update(p):
        return loss(kernel.step(p, kernel.init(p), jax.grad(loss)(p))[0])

    slope = jax.jit(jax.grad(after_one_update))(params)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(slope))
    assert any((x != 0).any() for x in jax.tree.leaves(slope))
