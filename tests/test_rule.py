"""The language of rules: annotations, checks, and the split into numbers and program."""

from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_keras import Kernel, rules
from jaxopt_keras.language.numerics import Complemented
from jaxopt_keras.language.rule import (
    Amount,
    Count,
    Decay,
    Momentum,
    NonNegative,
    Number,
    Rate,
    Rule,
    Signed,
    Within,
    fields_of,
)


class Toy(Rule):
    learning_rate: Rate = 0.1
    beta: Decay = 0.5
    momentum: Momentum = 0.0
    shift: Number = -1.0
    cap: Amount | None = None
    steps: Count = 3
    flag: bool = False

    class State(NamedTuple):
        mean: Signed | None = None


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"beta": 1.0}, ValueError, r"`beta` must be in \[0, 1\). Received: beta=1.0"),
        ({"beta": -0.1}, ValueError, "Received: beta=-0.1"),
        ({"beta": float("nan")}, ValueError, "`beta`"),
        ({"beta": None}, TypeError, "`beta` must be a number. Received: beta=None"),
        ({"beta": "0.9"}, TypeError, r"Received: beta='0.9' \(str\)"),
        ({"beta": True}, TypeError, "`beta`"),
        ({"beta": 0.5j}, TypeError, "`beta`"),
        ({"beta": np.ones(2)}, TypeError, "`beta`"),
        ({"learning_rate": -1}, ValueError, r"`learning_rate` must be in \[0, inf\)"),
        ({"learning_rate": float("inf")}, ValueError, "`learning_rate`"),
        ({"momentum": 1.5}, ValueError, r"`momentum` must be in \[0, 1\]"),
        ({"shift": float("inf")}, ValueError, "`shift`"),
        ({"cap": -1.0}, ValueError, "`cap`"),
        ({"cap": "a"}, TypeError, "`cap` must be a number or None"),
        ({"steps": 2.5}, TypeError, "`steps` must be an integer"),
        ({"steps": -1}, ValueError, "`steps`"),
        ({"flag": 1}, TypeError, "`flag` must be True or False"),
        ({"variant": "torch"}, ValueError, "`variant` must be one of"),
    ],
)
def test_what_is_refused(given, error, text):
    with pytest.raises(error, match=text):
        Toy(**given)


@pytest.mark.parametrize("value", [1, np.float64(1), np.float32(1), np.int64(1), np.array(1.0)])
def test_numbers_of_every_library_become_floats(value):
    assert type(Toy(learning_rate=value).learning_rate) is float


def test_arrays_stay_arrays_where_they_may_be_others_tomorrow():
    toy = Toy(learning_rate=jnp.float32(1), steps=jnp.int32(2), momentum=jnp.float32(0))
    assert isinstance(toy.learning_rate, jax.Array) and type(toy.steps) is int
    assert "momentum" in toy.traced() and "momentum" not in toy.plain().traced()
    with pytest.raises(ValueError, match="`learning_rate` must be in"):
        Toy(learning_rate=jnp.float32(-1))
    with pytest.raises(TypeError, match="`learning_rate` must be a number"):
        Toy(learning_rate=jnp.ones(2))


def test_a_rule_without_an_optax_twin_says_so():
    with pytest.raises(ValueError, match=r"`variant` must be one of \['keras'\] for Ftrl"):
        rules.Ftrl(variant="optax")


def test_numbers_and_program_come_apart():
    rule = Toy(learning_rate=0.3, beta=0.9)
    assert rule.traced() == {"learning_rate": 0.3, "beta": 0.9, "shift": -1.0}  # not momentum: off; not cap: None
    assert rule.skeleton() == Toy(beta=0.1, shift=2.0).skeleton()
    assert hash(rule.skeleton()) == hash(Toy().skeleton())
    assert rule.skeleton() != Toy(momentum=0.1).skeleton() != Toy(cap=1.0).skeleton() != Toy(steps=4).skeleton()
    assert isinstance(rule.arrays()["beta"], Complemented) and rule.arrays()["shift"].dtype == jnp.float32


def test_a_rule_is_an_immutable_value():
    assert Toy() == Toy() and "learning_rate=0.1" in repr(Toy()) and "beta=0.25" in repr(Toy(beta=0.25))
    with pytest.raises(AttributeError):
        Toy().beta = 0.1  # type: ignore[misc]  # a wrong write, on purpose


def test_annotations_are_read():
    fields = fields_of(Toy)
    assert [n for n, f in fields.items() if f.complement] == ["beta", "momentum"]
    assert [n for n, f in fields.items() if f.fixed == 0] == ["momentum"]
    assert str(Within(0, below=1)) == "[0, 1)" and str(Within(above=0, high=1)) == "(0, 1]"
    assert rules.Adam.slots()["velocity"].nonnegative and rules.Ftrl.slots()["linear"].exact
    assert rules.Adafactor.slots()["row"].lacks == (-1,)


def test_a_rule_needs_an_update():
    class Idle(Rule):
        gain: Annotated[float, Within(0)] = 1.0

    with pytest.raises(NotImplementedError, match="Idle needs `update"):
        kernel = Kernel(Idle())
        kernel.step(jnp.ones(2), kernel.init(jnp.ones(2)), jnp.ones(2))


def test_a_traced_rate_is_not_checked():
    def moved(rate):
        kernel = Kernel(rules.SGD(learning_rate=rate))
        return kernel.update(jnp.ones(2), kernel.init(jnp.ones(2)))[0]

    np.testing.assert_allclose(jax.vmap(moved)(jnp.array([0.5, 2.0])), [[-0.5, -0.5], [-2, -2]])


def test_a_slot_may_have_one_number_for_each_row():
    class OfRows(Rule):
        learning_rate: Rate = 0.5
        grain: ClassVar = "leaf"

        class State(NamedTuple):
            total: NonNegative

        def init(self, p):
            return self.State(jnp.zeros((*p.shape[:-1], 1), p.dtype))

        def update(self, g, p, s, at):
            total = s.total + jnp.sum(g * g, -1, keepdims=True)
            return -at.lr * g / jnp.sqrt(total), self.State(total)

    kernel, p = Kernel(OfRows()), jnp.ones((3, 4))
    p, state = kernel.step(p, kernel.init(p), p, donate=False)
    np.testing.assert_array_equal(p, 0.75)
    np.testing.assert_array_equal(state.slots["total"], np.full((3, 1), 4.0))
