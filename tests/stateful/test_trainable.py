"""A variable with `trainable=False` gets no gradient, and no optimizer updates it."""

from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import nnx

import jaxopt_keras as jk
from jaxopt_keras.interop import keras as interop
from jaxopt_keras.stateful.variable_kinds import handle

pytestmark = pytest.mark.usefixtures("jax_defaults")  # optax relies on promotion

W, B = np.arange(6.0, dtype=np.float32).reshape(2, 3) / 6, np.ones(3, np.float32)
MAKE = {
    "ours": lambda x, on: jk.Variable(x, trainable=on),
    "keras": lambda x, on: keras.Variable(x, trainable=on, dtype="float32"),
    "nnx": lambda x, on: nnx.Param(jnp.array(x), trainable=on),
}
every_kind = pytest.mark.parametrize("kind", MAKE)
traceable = pytest.mark.parametrize("kind", ["ours", "keras"])
OPTIMIZERS = {
    "plain": lambda: jk.AdamW(0.1),
    "accumulation": lambda: jk.SGD(0.1, gradient_accumulation_steps=2),
    "averages": lambda: jk.Adam(0.1, use_ema=True, ema_overwrite_frequency=1),
    "optax": lambda: jk.Optimizer.from_optax(optax.adam(0.1)),
    "groups": lambda: jk.MultiOptimizer(jk.OptimizerMap(jk.Adam(0.1))),
    "loss scale": lambda: jk.LossScaleOptimizer(jk.Adam(0.1)),
}
IGNORED = "`trainable=False` are not updated. Received: gradients for"


def pair(kind: str) -> tuple[Any, Any]:
    """A variable, and a frozen one."""
    return MAKE[kind](W, True), MAKE[kind](B, False)


def value(v: Any) -> np.ndarray:
    return np.array(v[...] if isinstance(v, nnx.Variable) else v.value)


@every_kind
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_gradient_of_a_frozen_variable_is_ignored_with_a_warning(kind, name):
    w, b = pair(kind)
    optimizer = OPTIMIZERS[name]()
    for _ in range(2):
        with pytest.warns(UserWarning, match=IGNORED) as found:
            optimizer.apply_gradients([(jnp.ones((2, 3)), w), (jnp.ones(3), b)])
        assert found[0].filename == __file__
    np.testing.assert_array_equal(value(b), B)
    assert (value(w) != W).all()
    optimizer.apply_gradients([(jnp.ones((2, 3)), w), (None, b)])  # without a warning
    np.testing.assert_array_equal(value(b), B)


@traceable
@pytest.mark.parametrize("args", [(), (jnp.ones(3),)], ids=["eager", "compiled"])
def test_value_and_grad_gives_none(kind, args):
    w, b = pair(kind)
    c = MAKE[kind](B, True)
    loss = lambda *x: jnp.sum(w.value @ b.value) * jnp.sum(c.value)
    out, (first, second, third) = jk.value_and_grad(loss, [w, b, c], *args)
    assert second is None and first.shape == (2, 3) and third.shape == (3,) and float(out) == float(loss())
    np.testing.assert_allclose(third, np.full(3, np.sum(W @ B)), rtol=1e-6)  # not that of `b`
    b.trainable = True
    assert jk.value_and_grad(loss, [w, b, c], *args)[1][1].shape == (3,)


@traceable
def test_minimize_leaves_it(kind):
    w, b = pair(kind)
    optimizer = jk.SGD(0.1)
    loss = lambda: jnp.sum(w.value**2) + jnp.sum(b.value**2)
    optimizer.minimize(loss, [w, b])
    np.testing.assert_array_equal(value(b), B)
    assert (value(w)[0, 1:] != W[0, 1:]).all()
    assert optimizer.get_gradients(loss, [w, b])[1] is None
    b.trainable = True
    optimizer.minimize(loss, [w, b])
    assert (value(b) != B).all()
    w.trainable = b.trainable = False
    with pytest.raises(ValueError, match="No gradients provided"):
        optimizer.minimize(loss, [w, b])


def test_integers_that_are_frozen():
    w, n = jk.Variable(W), jk.Variable([3], trainable=False)
    _, (_, none) = jk.value_and_grad(lambda: jnp.sum(w.value) * n.value[0], [w, n])
    assert none is None
    with pytest.raises(TypeError, match="floats or complex"):
        jk.value_and_grad(lambda: jnp.sum(w.value), [w, jk.Variable([3])])


def test_stateless_apply():
    w, b = pair("ours")
    optimizer = jk.Adam(0.1)
    optimizer.build([w, b])
    values = [v.value for v in optimizer.variables]
    apply = jax.jit(optimizer.stateless_apply)
    with pytest.warns(UserWarning, match=IGNORED):
        params, _ = apply(values, [jnp.ones((2, 3)), jnp.ones(3)], [w.value, b.value])
    np.testing.assert_array_equal(params[1], B)
    assert (params[0] != W).all()


def test_buffers():
    w, b = pair("ours")
    packed = jk.pack_variables([w, b])
    _, grads = jk.value_and_grad(lambda: jnp.sum(w.value) + jnp.sum(b.value), packed)
    optimizer = jk.Adam(0.1)
    optimizer.apply_gradients(zip(grads, packed, strict=True))
    np.testing.assert_array_equal(value(b), B)
    assert (value(w) != W).all()
    w, b = jk.Variable(W), jk.Variable(B)
    (buffer,) = jk.pack_variables([w, b])
    optimizer = jk.Adam(0.1)
    optimizer.apply_gradients([(jnp.ones(9), buffer)])
    b.trainable, before = False, value(b)
    with pytest.raises(ValueError, match="with `trainable=False`, in a buffer"):
        optimizer.apply_gradients([(jnp.ones(9), buffer)])
    np.testing.assert_array_equal(value(b), before)


WINDOWS = {
    "plain": lambda: jk.SGD(1.0, gradient_accumulation_steps=2),
    "averages": lambda: jk.SGD(1.0, gradient_accumulation_steps=2, use_ema=True),
    "optax": lambda: jk.Optimizer.from_optax(optax.sgd(1.0), gradient_accumulation_steps=2),
    "groups": lambda: jk.MultiOptimizer(jk.OptimizerMap(jk.SGD(1.0, gradient_accumulation_steps=2))),
    "loss scale": lambda: jk.LossScaleOptimizer(jk.SGD(1.0, gradient_accumulation_steps=2), 1.0),
}


@pytest.mark.parametrize("passed", ["a gradient", "None", "nothing"])
@pytest.mark.parametrize("name", WINDOWS)
@every_kind
@pytest.mark.filterwarnings("ignore:.*`trainable=False` are not updated")
def test_frozen_in_the_middle_of_a_window(kind, name, passed):
    """Gradients from before do not move it at the end of the window, nor in a later one in which it trains again."""
    w, v = MAKE[kind](B, True), MAKE[kind](B, True)
    many = [MAKE[kind](B, True) for _ in range(8)]  # enough of them for packed slots
    optimizer, g = WINDOWS[name](), jnp.ones(3)
    value = lambda x: np.asarray(handle(x).read())
    optimizer.apply([g] * 10, [w, v, *many])
    frozen(w, True)
    some = {"a gradient": ([g], [w]), "None": ([None], [w]), "nothing": ([], [])}[passed]
    for _ in range(2):  # to the middle of the next window
        optimizer.apply([*some[0], *[g] * 9], [*some[1], v, *many])
    np.testing.assert_array_equal(value(w), B)
    np.testing.assert_array_equal(value(v), B - 1)
    frozen(w, False)
    optimizer.apply([3 * g] * 10, [w, v, *many])
    np.testing.assert_array_equal(value(w), B - 1.5)  # (0 + 3) / 2
    np.testing.assert_array_equal(value(v), B - 1 - 2)


def frozen(variable, on):
    if isinstance(variable, nnx.Variable):
        variable.set_metadata(trainable=not on)
    else:
        variable.trainable = not on


def test_frozen_in_the_middle_of_a_window_of_fit():
    keras.utils.set_random_seed(0)
    first, last = (keras.layers.Dense(n, use_bias=False) for n in (2, 1))
    model = keras.Sequential([keras.Input((2,)), first, last])
    model.compile(interop.SGD(0.125, gradient_accumulation_steps=2), "mse")
    fit = lambda: model.fit(np.ones((1, 2)), np.zeros((1, 1)), batch_size=1, verbose=0)

    def freeze(on):
        first.trainable = not on
        model.optimizer.build(model.trainable_variables)
        model.compile(model.optimizer, "mse")

    fit()
    freeze(True)
    before = first.kernel.numpy()
    fit()
    fit()  # to the middle of the next window
    freeze(False)
    np.testing.assert_array_equal(first.kernel.numpy(), before)
    kernel = last.kernel.numpy()
    error = 2 * np.ones((1, 2)) @ before @ kernel
    fit()
    wanted = before - 0.125 / 2 * np.ones((2, 1)) @ error @ kernel.T  # of the gradient of the last call alone
    np.testing.assert_allclose(first.kernel.numpy(), wanted, rtol=1e-5)
