"""Gradients with respect to variables: right with whatever a loss closes over, and never a tracer left behind."""

import functools

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import nnx
from jax.core import Tracer

import jaxopt_keras as jk
from jaxopt_keras import value_and_grad
from jaxopt_keras.stateful.traced_loss import _cached_traces, _Key
from jaxopt_keras.stateful.variable import ArrayLike
from tests.stateful.facade import close, refused, same, two, unchanged, values

X = jnp.arange(6.0).reshape(2, 3)


def variable(kind, value, name="w"):
    return jk.Variable(value, name=name) if kind == "ours" else keras.Variable(value, name=name)


both_kinds = pytest.mark.parametrize("kind", ["ours", "keras"])


def concrete(*variables):
    assert not any(isinstance(v._value if hasattr(v, "_value") else v, Tracer) for v in variables)


# --- all forms --------------------------------------------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize("batch", [(), (X,)], ids=["closure", "batch"])
def test_values_and_gradients(kind, batch):
    kernel, bias = variable(kind, np.ones(3, np.float32)), variable(kind, np.float32(2.0), "bias")

    def loss(x=X):
        return jnp.sum(jnp.dot(x, kernel.value) * bias.value)

    value, grads = value_and_grad(loss, [kernel, bias], *batch)
    assert float(value) == 30 and isinstance(grads, list)
    close(grads[0], 2 * X.sum(0))
    close(grads[1], X.sum())
    (value, aux), (g,) = value_and_grad(lambda *a: (loss(*a), {"double": 2 * loss(*a)}), [bias], *batch, has_aux=True)
    assert float(value) == 30 and float(aux["double"]) == 60
    close(g, X.sum())
    concrete(kernel, bias)


@both_kinds
@pytest.mark.parametrize("batch", [(), (X,)], ids=["closure", "batch"])
def test_what_is_not_read_has_no_gradient(kind, batch):
    a, b, c = (variable(kind, np.float32(2.0), name) for name in "abc")
    _, grads = value_and_grad(lambda *_: a.value**2 + 0 * b.value, [a, b, c], *batch)
    assert [g if g is None else float(g) for g in grads] == [4, 0, None]
    _, grads = value_and_grad(lambda *_: 1.0, [a], *batch)
    assert grads == [None]
    value, grads = value_and_grad(lambda *_: jnp.float32(1), [], *batch)
    assert grads == [] and value == 1


def test_kinds_mixed():
    ours, theirs = variable("ours", np.float32(2)), variable("keras", np.float32(3))
    _, grads = value_and_grad(lambda: ours * theirs.value, [theirs, ours])
    assert [float(g) for g in grads] == [2, 3]


def test_variables_in_arithmetic():
    w = jk.Variable([1.0, 2.0])
    expressions = {
        "w * 2": 2.0, "2 * w": 2.0, "w + w": 2.0, "w - 1": 1.0, "1 - w": -1.0, "-w": -1.0, "w / 2": 0.5, "w[:]": 1.0,
        "jnp.multiply(w.value, 3)": 3.0, "w.reshape(2)": 1.0, "w @ jnp.eye(2)": 1.0, "jnp.asarray(w)": 1.0,
        "w.value": 1.0,
    }  # fmt: skip
    for text, expected in expressions.items():
        _, (g,) = value_and_grad(lambda text=text: jnp.sum(eval(text, {"w": w, "jnp": jnp})), [w])
        assert g.tolist() == [expected] * 2, text


# --- compiled ---------------------------------------------------------------------------------------------------------


@both_kinds
def test_a_batch_loss_is_traced_once(kind):
    kernel, scale = variable(kind, np.ones(3, np.float32)), variable(kind, np.float32(1.0), "scale")
    optimizer, traces = jk.SGD(0.01), []

    def loss(x):
        traces.append(1)
        return jnp.mean((jnp.dot(x, kernel.value) * scale.value) ** 2)

    losses = []
    for i in range(5):
        value, (g,) = value_and_grad(loss, [kernel], X + i)
        optimizer.apply([g], [kernel])
        losses.append(value)
    assert len(traces) == 2  # the first found `scale`, which is not in the list
    value_and_grad(loss, [kernel], X[:1])
    assert len(traces) == 3  # another shape
    assert len(set(map(float, losses))) == 5


@both_kinds
def test_variables_besides_may_change(kind):
    w, scale = variable(kind, np.float32(1)), variable(kind, np.float32(2), "scale")
    seen = []
    loss = lambda x: jnp.sum(x) * w.value * scale.value
    for value in (2.0, 3.0, 4.0):
        scale.assign(np.float32(value))
        value, (g,) = value_and_grad(loss, [w], jnp.ones(2))
        seen.append((float(value), float(g)))
    assert seen == [(4, 4), (6, 6), (8, 8)]


def test_views_besides_may_change():
    optimizer, w = jk.SGD(0.5), jk.Variable(1.0)
    loss = lambda x: x * w * optimizer.learning_rate
    assert float(value_and_grad(loss, [w], jnp.float32(1))[0]) == 0.5
    optimizer.learning_rate = 0.25
    assert float(value_and_grad(loss, [w], jnp.float32(1))[0]) == 0.25


def test_a_closure_sees_what_is_there_now():
    w, box = jk.Variable(1.0), {"x": 1.0}
    loss = lambda: w * box["x"] * (3 if box["x"] > 1 else 1)
    assert float(value_and_grad(loss, [w])[1][0]) == 1
    box["x"] = 2.0
    assert float(value_and_grad(loss, [w])[1][0]) == 6


def test_a_function_made_anew_is_traced_once():
    w, traced = jk.Variable(1.0), []
    for factor in (2, 2, 2, 3):
        for x in (jnp.float32(1), jnp.float32(5)):

            def loss(x, *, power=2):
                traced.append(factor)  # noqa: B023  # called at once
                return w * x**power * factor  # noqa: B023  # likewise

            assert float(value_and_grad(loss, [w], x)[0]) == factor * float(x) ** 2
    assert traced == [2, 3]


def test_the_cache_is_bounded():
    w = jk.Variable(1.0)
    for i in range(3):
        value_and_grad(lambda x, i=i: x * w * i, [w], jnp.float32(1))
    limit = _cached_traces.cache_info().maxsize
    assert limit and _cached_traces.cache_info().currsize <= limit
    for i in range(limit + 1):
        _cached_traces(_Key(lambda i=i: i, [], False))
    value_and_grad(lambda x: x * w, [w], jnp.float32(1))
    assert _cached_traces.cache_info().currsize == limit


def test_any_callable_will_do():
    w = jk.Variable(2.0)

    class Loss:
        def __call__(self, x):
            return x * w

        def method(self, x):
            return x * w

    class Unhashable(Loss):
        __hash__ = None

    for loss in (
        Loss(),
        Loss().method,
        Unhashable().method,
        functools.partial(lambda y, x: x * y * w, 1.0),
        Unhashable(),
        jax.jit(Loss()),
    ):
        for _ in range(2):
            assert float(value_and_grad(loss, [w], jnp.float32(3))[1][0]) == 3


# --- assignments ------------------------------------------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize("batch", [(), (X,)], ids=["closure", "batch"])
def test_assignments_in_the_loss_happen(kind, batch):
    w, mean = variable(kind, np.ones(3, np.float32)), variable(kind, np.zeros(3, np.float32), "mean")

    def loss(x=X):
        mean.assign(0.5 * mean.value + 0.5 * x.mean(0))
        w.assign(w.value + 1)
        return jnp.sum(jnp.dot(x, w.value))

    expected = np.zeros(3)
    for i in range(3):
        value, (g,) = value_and_grad(loss, [w], *batch)
        expected = 0.5 * expected + 0.5 * X.mean(0)
        close(values([mean])[0], expected)
        assert values([w])[0].tolist() == [2.0 + i] * 3
        close(g, X.sum(0))
        assert float(value) == 15 * (2 + i)
    concrete(w, mean)


@pytest.mark.usefixtures("jax_defaults")  # Keras's layers promote
def test_a_model_of_keras_trains():
    model = keras.Sequential([
        keras.layers.Dense(4, activation="tanh"), keras.layers.BatchNormalization(), keras.layers.Dropout(0.1),
        keras.layers.Dense(1),
    ])  # fmt: skip
    x = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
    y = (x @ np.ones((3, 1))).astype("float32")
    model(x)
    moving, seeds = model.layers[1].moving_mean, model.layers[2].seed_generator.state
    before, seed = np.array(moving.value), np.array(seeds.value)
    optimizer, traces = jk.Adam(0.05), []

    def loss(x, y):
        traces.append(1)
        return jnp.mean((model(x, training=True) - y) ** 2)

    losses = []
    for _ in range(20):
        value, grads = value_and_grad(loss, model.trainable_variables, x, y)
        optimizer.apply(grads, model.trainable_variables)
        losses.append(float(value))
    assert losses[-1] < losses[0] / 2 and len(traces) == 2
    assert np.any(np.array(moving.value) != before) and np.any(np.array(seeds.value) != seed)
    concrete(*model.variables)
    for _ in range(2):
        optimizer.minimize(lambda: loss(x, y), lambda: model.trainable_variables)
    concrete(*model.variables)
    assert optimizer.iterations == 22


@pytest.mark.parametrize("batch", [(), (2.0,)], ids=["closure", "batch"])
def test_a_scope_of_keras_around_the_call(batch):
    """It maps what the loss reads, and takes what the loss assigns."""
    w, scale, ours = keras.Variable(np.float32(1)), keras.Variable(np.float32(2)), jk.Variable(3.0)

    def loss(x=2.0):
        scale.assign(scale.value * 2)
        return w.value * scale.value * ours * x

    with keras.StatelessScope([(scale, jnp.float32(5)), (w, jnp.float32(7))]) as scope:
        value, (g, ours_too) = value_and_grad(loss, [w, ours], *batch)
        assert [float(value), float(g), float(ours_too)] == [7 * 10 * 3 * 2, 10 * 3 * 2, 7 * 10 * 2]
        assert float(scope.get_current_value(scale)) == 10
    assert [float(x) for x in values([w, scale, ours])] == [1, 2, 3]


def test_a_model_made_inside_the_loss_is_refused():
    w = keras.Variable(np.float32(1))
    layer = keras.layers.Dense(1)
    with pytest.raises(ValueError, match="is created inside the loss. Build the model first"):
        value_and_grad(lambda x: jnp.sum(layer(x)) * w.value, [w], X)


@both_kinds
@pytest.mark.parametrize("batch", [(), (X,)], ids=["closure", "batch"])
def test_a_loss_that_raises_leaves_everything(kind, batch):
    w, other = variable(kind, np.float32(1)), variable(kind, np.float32(2), "other")

    def loss(*_):
        w.assign(w.value * 2)
        other.assign(other.value * w.value)
        raise OSError("in the loss")

    for _ in range(2):
        with pytest.raises(OSError, match="in the loss"):
            value_and_grad(loss, [w], *batch)
        assert [float(x) for x in values([w, other])] == [1, 2]
        concrete(w, other)
    optimizer = jk.Adam()
    with refused(OSError, "in the loss", optimizer, w, other):
        optimizer.minimize(lambda: loss(), [w])
    assert float(value_and_grad(lambda *_: w.value * other.value, [w], *batch)[0]) == 2


def test_no_tracer_leaks_from_transformations():
    w, mean = jk.Variable(1.0), jk.Variable(0.0, name="mean")

    def loss(x):
        mean.assign(x)
        return x * w

    with pytest.raises(TypeError, match="`mean` cannot be assigned inside `jit`"):
        jax.jit(lambda x: value_and_grad(loss, [w], x)[0])(jnp.float32(3))
    with pytest.raises(TypeError, match="`mean` cannot be assigned inside"):
        jax.grad(lambda x: value_and_grad(lambda: loss(x), [w])[0])(jnp.float32(3))
    concrete(w, mean)
    assert float(mean) == 0
    pure = jax.jit(lambda x: value_and_grad(lambda x: x * w, [w], x))  # nothing assigned: fine
    assert float(pure(jnp.float32(3))[1][0]) == 3
    concrete(w)


def test_gradients_of_gradients():
    w, scale = jk.Variable(3.0), jk.Variable(2.0)

    def penalty(*batch):
        _, (g,) = value_and_grad(lambda *_: scale * w**2, [w], *batch)  # 2 scale w
        return g**2

    for batch in ((), (jnp.float32(1),)):
        value, grads = value_and_grad(functools.partial(penalty, *batch), [w, scale])
        assert float(value) == 144
        assert [float(g) for g in grads] == [96, 144]  # 8 scale² w, 8 scale w²
        value, grads = value_and_grad(penalty, [w, scale], jnp.float32(1))
        assert [float(g) for g in grads] == [96, 144]
    counter = jk.Variable(0.0)

    def outer():
        value_and_grad(lambda: counter.assign_add(1.0) * w, [w])
        return w * counter

    assert float(value_and_grad(outer, [w])[0]) == 3 and float(counter) == 1
    concrete(w, scale, counter)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (X,)], ids=["closure", "batch"])
@pytest.mark.parametrize(
    ("loss", "error", "text"),
    [
        (lambda w: w.value, ValueError, r"`loss` must return a scalar. Received: an array of shape \(3,\)"),
        (lambda w: None, TypeError, "`loss` takes an array of numbers|`loss` must return a float"),
        (lambda w: "abc", TypeError, "`loss`"),
        (lambda w: 1, TypeError, "`loss` must return a float. Received: dtype int32"),
        (lambda w: jax.lax.complex(w[0], w[1]), TypeError, "`loss` must return a float. Received: dtype complex64"),
    ],
)
def test_losses_that_are_none(loss, error, text, batch):
    w = jk.Variable(np.ones(3))
    with pytest.raises(error, match=text):
        value_and_grad(lambda *_: loss(w), [w], *batch)
    with pytest.raises(TypeError, match=r"must return a pair \(loss, aux\) under `has_aux`. Received:"):
        value_and_grad(lambda *_: jnp.sum(w.value), [w], *batch, has_aux=True)
    concrete(w)


def test_what_is_no_variable():
    loss = lambda: jnp.float32(1)
    for variables, text in [
        (jk.Variable(1.0), "`variables` must be a list of variables. Received: Variable"),
        (None, "`variables` must be a list.* Received: NoneType"),
        ([jnp.ones(3)], "A variable must be a `jaxopt_keras.Variable`"),
        ([nnx.Param(jnp.ones(3))], "cannot trace reads of a Param.*`nnx.grad`"),
        ([jax.new_ref(jnp.ones(3))], "cannot trace reads of a .*`jax.grad`"),
        ([jk.Variable(1, name="count")], "`count` must be of floats or complex numbers. Received: dtype int32"),
        ([jk.SGD().iterations], "A variable must be"),
    ]:
        with pytest.raises(TypeError, match=text):
            value_and_grad(loss, variables)
    with pytest.raises(TypeError, match="`loss` must be a function. Received: float"):
        value_and_grad(1.0, [jk.Variable(1.0)])


# --- minimize and the older names -------------------------------------------------------------------------------------


@both_kinds
def test_minimize(kind):
    w = variable(kind, np.array([1.0, -2.0], np.float32))
    loss = lambda: jnp.sum(w.value**2) / 2
    optimizer = jk.SGD(0.5)
    assert int(optimizer.minimize(loss, [w])) == 1
    close(values([w])[0], [0.5, -1.0])
    assert optimizer.minimize(loss, lambda: [w], name="train") == 2
    assert optimizer.minimize(loss, var_list=(w,), grad_loss=2.0) == 3  # the gradient, twice
    close(values([w])[0], [0, 0])
    concrete(w)


def test_minimize_with_the_gradient_of_a_vector():
    w = jk.Variable([1.0, 2.0])
    optimizer = jk.SGD(1.0)
    optimizer.minimize(lambda: w * 3, [w], grad_loss=[1.0, 10.0])
    assert w.numpy().tolist() == [-2, -28]
    with refused(
        ValueError, r"`grad_loss` must have the shape of the loss, \(2,\). Received: shape \(3,\)", optimizer, w
    ):
        optimizer.minimize(lambda: w * 3, [w], grad_loss=np.ones(3))
    with refused(ValueError, "`loss` must return a scalar", optimizer, w):
        optimizer.minimize(lambda: w * 3, [w])
    with refused(TypeError, "`grad_loss` takes an array of numbers", optimizer, w):
        optimizer.minimize(lambda: w * 3, [w], grad_loss="one")


def test_minimize_may_make_the_variables():
    made = []

    def loss():
        if not made:
            made.append(jk.Variable(3.0))
        return made[0] ** 2

    optimizer = jk.SGD(0.25)
    optimizer.minimize(loss, lambda: made)
    assert float(made[0]) == 1.5
    concrete(*made)


def test_minimize_refuses():
    w = jk.Variable(1.0, name="w")
    optimizer = jk.Adam()
    for loss, var_list, error, text in [
        (w * 2, [w], TypeError, "`loss` must be a function without arguments.*no tape"),
        (lambda x: w * 2, [w], TypeError, "argument"),
        (lambda: w * 2, w, TypeError, "`var_list` must be a list"),
        (lambda: w * 2, None, TypeError, "`var_list` must be a list. Received: var_list=None"),
        (lambda: w * 2, lambda: w, TypeError, "`var_list` must be a list"),
        (lambda: w * 2, [1.0], TypeError, "A variable must be"),
        (lambda: jnp.float32(1), [w], ValueError, "No gradients provided for any variable"),
    ]:
        with refused(error, text, optimizer, w):
            optimizer.minimize(loss, var_list)
    other = jk.Variable(1.0, name="other")
    with pytest.warns(UserWarning, match=r"Gradients do not exist for variables \['other'\]"):
        optimizer.minimize(lambda: w * 2, [w, other])
    with unchanged(optimizer, w):
        assert optimizer.minimize(lambda: w * 2, []) == 1


def test_get_gradients_and_updates():
    a, b = jk.Variable(2.0, name="a"), jk.Variable(3.0, name="b")
    optimizer = jk.SGD(0.5)
    with unchanged(optimizer, a, b):
        assert [float(g) for g in optimizer.get_gradients(lambda: a * b, [a, b])] == [3, 2]
        assert [float(g) for g in optimizer.get_gradients(lambda: a * b, lambda: [b])] == [2]
    with refused(ValueError, r"no gradient for \['b'\]: the loss does not read them", optimizer, a, b):
        optimizer.get_gradients(lambda: a * 2, [a, b])
    with refused(ValueError, "no gradient for", optimizer, a, b):
        optimizer.get_updates(lambda: a * 2, [a, b])
    with refused(TypeError, "`params` must be a list", optimizer, a, b):
        optimizer.get_updates(lambda: a * 2, a)
    with refused(TypeError, "`loss` must be a function", optimizer, a, b):
        optimizer.get_gradients(1.0, [a])
    (iterations,) = optimizer.get_updates(lambda: a * b, [a, b])
    assert iterations == 1 and [float(a), float(b)] == [0.5, 2.0]


def test_training_with_a_batch_and_two_networks():
    kernel, bias = two()
    optimizer = jk.Adam(0.1)
    y = jnp.ones((4, 3))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)), jnp.float32)
    loss = lambda x, y: jnp.mean((x @ kernel + bias.reshape(1, 3) - y) ** 2)
    first, _ = value_and_grad(loss, [kernel, bias], x, y)
    for _ in range(50):
        last, grads = value_and_grad(loss, [kernel, bias], x, y)
        optimizer.apply_gradients(zip(grads, [kernel, bias], strict=True))
    assert last < first / 10
    same(np.asarray(value_and_grad(loss, [bias, kernel], x, y)[0]), np.asarray(loss(x, y)))
    assert all(isinstance(v, ArrayLike) for v in (kernel, bias))
