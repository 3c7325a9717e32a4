"""A modifier that changes steps is not put around a rule with other weights to evaluate: all pairs of both."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras import Kernel, Rule, rules
from jaxopt_keras.engine.core import Now
from jaxopt_keras.engine.cores.leafwise import At
from jaxopt_keras.language.modifier import Modifier
from jaxopt_keras.rules import modifiers

ALL = [x for x in vars(modifiers).values() if isinstance(x, type) and issubclass(x, Modifier) and x is not Modifier]
CHANGING = {"Cautious", "CautiousDecay", "Hyperball", "Lookahead", "ScheduleFree"}
AVERAGING = [
    rules.ScheduleFreeAdamW(0.1),
    modifiers.ScheduleFree(rules.SGD(0.1)),
    modifiers.Lookahead(rules.SGD(0.1)),
    modifiers.Centralized(modifiers.ScheduleFree(rules.SGD(0.1))),
]
every_modifier = pytest.mark.parametrize("modifier", ALL, ids=lambda x: x.__name__)


@every_modifier
@pytest.mark.parametrize("inner", AVERAGING, ids=lambda x: type(x).__name__)
def test_all_pairs(modifier, inner):
    if modifier.__name__ not in CHANGING:
        assert modifier(inner).inner == inner
        return
    with pytest.raises(ValueError, match="changes steps|decoupled weight decay"):
        modifier(inner)


@every_modifier
def test_what_keeps_steps_returns_them_as_they_are(modifier):
    """It says so itself: here is looked whether it does."""
    step, p, key = jnp.full((3, 2), 0.25), jnp.ones((3, 2)), jax.random.key(0)
    rule = modifier(rules.SGD(0.1))
    state, scalars = rule.init(p), rule.scalars()
    within = lambda self, g, p, s, at: (step, s)
    at = At.of(Now(jnp.ones(()), 0.1, 0.5, {}, loss=jnp.ones(())), scalars, scalars)._replace(key=key)
    with mock.patch.object(Modifier, "within", within):
        found, _ = rule.update(jnp.linspace(-1, 1, 6).reshape(3, 2), p, state, at)
    assert (found is step) == (modifier.__name__ not in CHANGING)


def test_the_other_way_around_is_right():
    """x is the mean of all z, which move by the cautious steps."""
    kernel = Kernel(modifiers.ScheduleFree(modifiers.Cautious(rules.SGD(0.5)), momentum=0.75))
    params, z = {"w": jnp.array([1.0, -2.0])}, np.array([1.0, -2.0])
    state, x = kernel.init(params), z
    for t in range(1, 5):
        params, state = kernel.step(params, state, {"w": jnp.array([1.0, 0.0])}, donate=False)
        z = z - [0.5 * 2, 0]  # one of two elements agrees
        x = x + (z - x) / t
    np.testing.assert_allclose(kernel.averaged(params, state)["w"], x, rtol=1e-6)


class Halved(Modifier):
    def update(self, g, p, s, at):
        step, s = self.within(g, p, s, at)
        return step / 2, s


class Sharpened(Modifier):
    keeps_steps = True

    def update(self, g, p, s, at):
        return self.within(2 * g, p, s, at)


class Evaluated(Rule):
    """A rule of a user with other weights to evaluate."""

    def update(self, g, p, s, at):
        return -at.lr * g, s

    def averaged(self, p, s):
        return 2 * p


class Fallen(Rule):
    """A rule of a user that leaves vectors to another one."""

    def accepts(self, path, p):
        return p.ndim > 1

    @property
    def fallback(self):
        return Evaluated()


def test_of_ones_own():
    assert Halved(rules.Adam()) and Sharpened(Evaluated())
    with pytest.raises(ValueError, match="Halved changes steps, and Evaluated has other weights.*keeps_steps = True"):
        Halved(Evaluated())
    with pytest.raises(ValueError, match="Evaluated has other weights.*Received: inner=Fallen"):
        Halved(Fallen())


def test_in_the_place_of_muons_adam():
    with pytest.raises(ValueError, match="nor have other weights to evaluate"):
        rules.Muon(others=rules.ScheduleFreeAdamW())


def test_functions_refuse_it_too():
    with pytest.raises(ValueError, match="an average is the outermost"):
        jk.cautious(jk.schedule_free(jk.adamw()))
    with pytest.raises(ValueError, match="an average is the outermost"):
        jk.Cautious(jk.ScheduleFreeAdamW())
