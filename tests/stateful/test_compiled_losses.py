"""A compiled loss follows what it reads: what can change is an argument of its program, or a change compiles anew."""

import functools
import types
import warnings
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras import value_and_grad
from jaxopt_keras.stateful import traced_loss

ONE = jnp.float32(1)
FLAG, SCALE = False, 1.0


@pytest.mark.parametrize("wrapped", [lambda o: o, lambda o: jk.MultiOptimizer(jk.OptimizerMap(o, {}))])
def test_a_loss_scale_is_followed(wrapped):
    """The scale overflows at first, as it often does. A scale that is frozen in the program would overflow for ever."""
    w = jk.Variable([1.0, 2.0], dtype="float16", name="w")
    optimizer = jk.LossScaleOptimizer(wrapped(jk.SGD(1e-3)))
    for _ in range(12):
        _, grads = value_and_grad(lambda x: optimizer.scale_loss(jnp.sum(x * w * w)), [w], jnp.float16(100))
        optimizer.apply_gradients(zip(grads, [w], strict=True))
    skipped = int(optimizer.state.scalars["skipped"])
    assert 5 < skipped < 10 and float(optimizer.dynamic_scale) == 2.0 ** (15 - skipped)
    w.assign([1.0, 2.0])
    for _ in range(3):  # in a smaller scale the gradients are right
        _, (g,) = value_and_grad(lambda x: optimizer.scale_loss(jnp.sum(x * w * w)), [w], jnp.float16(100))
        np.testing.assert_allclose(g / float(optimizer.dynamic_scale), 200 * np.asarray(w), rtol=2e-3)
        optimizer.apply_gradients([(g, w)])
    np.testing.assert_allclose(np.asarray(w), np.array([1.0, 2.0]) * (1 - 0.2) ** 3, rtol=2e-3)


def followed(loss, change, values, variables=()):
    """Check a loss that multiplies by what `change` sets, and that nothing is traced again if nothing changes."""
    w = jk.Variable(1.0)
    for value in values:
        change(value)
        for _ in range(2):
            got, (g,) = value_and_grad(lambda x: loss(x) * w, [w, *variables], ONE)[0:2]
            assert float(got) == float(g) == pytest.approx(value)


@pytest.mark.parametrize("name", ["learning_rate", "iterations", "loss_scale_factor", "beta_1"])
def test_numbers_of_an_optimizer(name):
    optimizer = jk.Adam(0.5, loss_scale_factor=2.0)
    loss = lambda x: x * jnp.asarray(getattr(optimizer, name), jnp.float32)
    followed(loss, lambda value: setattr(optimizer, name, value), [0.5, 0.25] if name == "beta_1" else [3, 4])


def test_scale_loss_of_any_optimizer():
    optimizer = jk.SGD(0.5, loss_scale_factor=2.0)
    followed(optimizer.scale_loss, lambda value: setattr(optimizer, "loss_scale_factor", value), [2.0, 4.0])


def test_a_scheduled_rate():
    optimizer, w = jk.SGD(lambda step: 0.5 / (1.0 + step.astype(jnp.float32))), jk.Variable(1.0)
    for count in range(3):
        assert float(value_and_grad(lambda x: x * w * optimizer.learning_rate, [w], ONE)[0]) == pytest.approx(
            0.5 / (1 + count)
        )
        optimizer.apply_gradients([(jnp.float32(0), w)])
    rates = [0.25, 0.125]
    optimizer.learning_rate = lambda: rates[0]
    followed(lambda x: x * optimizer.learning_rate, lambda value: rates.__setitem__(0, value), [0.25, 0.125])


class Box:
    scale = 1.0

    def __init__(self):
        self.__dict__.update(inner=types.SimpleNamespace(scale=1.0), table={"scale": [1.0]}, flag=False)

    @property
    def double(self):
        return 2 * self.scale

    def method(self, x):
        return x * self.scale

    def by_property(self, x):
        return x * self.double / 2

    def nested(self, x):
        return x * self.inner.scale

    def in_table(self, x):
        return x * self.table["scale"][0]

    def by_name(self, x):
        return x * getattr(self, "scale")  # noqa: B009  # that is the case

    def __call__(self, x):
        return self.method(x)


@dataclass
class Slotted:
    __slots__ = ("scale",)
    scale: float


def globally(x):
    return x * SCALE


def set_global(value):
    global SCALE
    SCALE = value


def through_a_function(x):
    return [globally(y) for y in [x]][0]


def cases():
    box, slotted, boxes = Box(), Slotted(1.0), [Box()]
    settle = lambda value: setattr(box, "scale", value)
    yield "method", box.method, settle
    yield "callable object", box, settle
    yield "property", box.by_property, settle
    yield "getattr", box.by_name, settle
    yield "nested", box.nested, lambda value: setattr(box.inner, "scale", value)
    yield "table", box.in_table, lambda value: box.table["scale"].__setitem__(0, value)
    yield "class", Box().method, lambda value: setattr(Box, "scale", value)
    yield "slots", lambda x: x * slotted.scale, lambda value: setattr(slotted, "scale", value)
    yield "list of objects", lambda x: x * boxes[0].scale, lambda value: setattr(boxes[0], "scale", value)
    yield "global", globally, set_global
    yield "global of another function", through_a_function, set_global
    yield "partial", functools.partial(lambda b, x: b.method(x), box), settle
    array = [jnp.float32(1.0)]
    yield "array", lambda x: x * array[0], lambda value: array.__setitem__(0, jnp.float32(value))
    number = 1.0

    def set_number(value):
        nonlocal number
        number = value

    inner = lambda x: x * number
    yield "closure of another function", lambda x: inner(x), set_number


@pytest.mark.parametrize("case", [*cases()], ids=lambda case: case[0])
def test_python_values(case):
    _, loss, change = case
    followed(loss, change, [2.0, 3.0, 2.0])
    change(1.0)


def test_a_flag_that_alternates_compiles_twice():
    box, w, traces = Box(), jk.Variable(1.0), []

    def loss(x):
        traces.append(1)
        return x * w * (2.0 if box.flag else 1.0)

    for i in range(8):
        box.flag = i % 2 == 1
        assert float(value_and_grad(loss, [w], ONE)[0]) == 1 + i % 2
    assert len(traces) == 2


def test_what_the_loss_does_not_read_may_change():
    """A global with the name of an attribute, attributes of the trainer, the rate: no step compiles anew."""
    w, traces = jk.Variable(1.0), []
    optimizer = jk.SGD(0.1, loss_scale_factor=2.0)

    class Trainer:
        steps = 0

        def loss(self, x):
            traces.append(1)
            return optimizer.scale_loss(self.table["w"] * jnp.mean(x))

    trainer = Trainer()
    trainer.table = {"w": w}
    globals()["mean"] = 0.0
    for i in range(4):
        trainer.steps, globals()["mean"], optimizer.learning_rate = i, float(i), 0.1 / (i + 1)
        _, (g,) = value_and_grad(trainer.loss, [w], ONE)
        optimizer.apply_gradients([(g, w)])
    del globals()["mean"]
    assert len(traces) == 1


def test_many_compilations_are_said():
    w, box = jk.Variable(1.0), Box()
    with pytest.warns(UserWarning, match=r"compiled `.*<lambda>` 10 times.*scale. Pass it as an argument"):
        for i in range(traced_loss.MANY):
            box.scale = float(i)
            assert float(value_and_grad(lambda x: x * w * box.scale, [w], ONE)[0]) == i
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(3):
            value_and_grad(lambda x, s: x * w * s, [w], ONE, float(i))


def test_a_failed_loss_is_not_kept():
    w, box = jk.Variable(1.0), Box()

    def loss(x):
        if box.flag:
            raise ValueError("no")
        return x * w

    box.flag = True
    with pytest.raises(ValueError, match="no"):
        value_and_grad(loss, [w], ONE)
    box.flag = False
    assert float(value_and_grad(loss, [w], ONE)[0]) == 1


def test_within_a_transformation():
    w, box = jk.Variable(1.0), Box()
    run = lambda x: value_and_grad(lambda x: x * w * box.scale, [w], x)[0]
    for scale in (2.0, 3.0):
        box.scale = scale
        assert float(jax.vmap(run)(jnp.ones(2))[0]) == scale
