"""Flax: kernels in nnx and linen, master weights and stochastic rounding in place, and the stateful face over nnx."""

import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.training import train_state

import jaxopt_keras as jk
from jaxopt_keras.interop import flax

pytestmark = pytest.mark.usefixtures("jax_defaults")  # flax's layers need implicit promotion

X = jnp.linspace(-1, 1, 15).reshape(5, 3)


class Net(nnx.Module):
    """Layers in a list, something that is no parameter, and a parameter outside of a layer."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)])
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.scale = nnx.Param(jnp.float32(2.0))

    def __call__(self, x):
        first, last = self.layers
        return last(nnx.relu(first(self.norm(x)))) * self.scale[...]


def loss_fn(model):
    return jnp.mean((model(X) - 1) ** 2)


def train(make, jit=True, steps=3):
    model = Net()
    optimizer = make(model)

    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(loss_fn)(model)
        optimizer.update(model, grads)
        return loss

    run = nnx.jit(step, donate_argnames=("model", "optimizer")) if jit else step
    losses = [float(run(model, optimizer)) for _ in range(steps)]
    return losses, nnx.to_pure_dict(nnx.state(model, nnx.Param)), optimizer


def near(a, b, atol=2e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=atol), a, b)


ADAM = jk.adam(0.01, epsilon=1e-8, variant="optax")
WAYS = {
    "nnx": lambda model: nnx.Optimizer(model, ADAM, wrt=nnx.Param),
    "ours": lambda model: flax.Optimizer(model, ADAM),
    "from_optax": lambda model: flax.Optimizer(model, jk.Kernel.from_optax(optax.adam(0.01))),
    "chain": lambda model: nnx.Optimizer(model, optax.chain(optax.identity(), ADAM), wrt=nnx.Param),
}


@pytest.fixture(scope="module")
def expected():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return train(lambda model: nnx.Optimizer(model, optax.adam(0.01), wrt=nnx.Param))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("jit", [True, False])
def test_nnx(way, jit, expected):
    losses, params, optimizer = train(WAYS[way], jit)
    near((losses, params), expected[:2])
    assert int(optimizer.step[...]) == 3


def test_an_interrupt_within_an_update_comes_after_it(monkeypatch):
    def interrupted(self, state):
        signal.raise_signal(signal.SIGINT)
        set_state(self, state)

    set_state = flax.Optimizer.set_state
    monkeypatch.setattr(flax.Optimizer, "set_state", interrupted)
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = flax.Optimizer(model, jk.sgd(1.0))
    before, grads = model.bias[...], nnx.grad(lambda model: jnp.sum(model.bias[...]))(model)
    for count in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            optimizer.update(model, grads)
        assert int(optimizer.state.count) == int(optimizer.step[...]) == count
        np.testing.assert_array_equal(model.bias[...], before - count)


def test_patterns_see_plain_paths():
    _, params, optimizer = train(
        lambda model: flax.Optimizer(model, jk.partition({"^layers/0/bias$": jk.frozen()}, default=jk.sgd(0.1)))
    )
    assert not params["layers"][0]["bias"].any() and params["layers"][1]["bias"].any()
    assert int(optimizer.state.count) == 3


def test_quantized_slots_and_wider_masters():
    _, params, optimizer = train(lambda model: flax.Optimizer(model, jk.adamw(0.01, state_dtype="bfloat16")))
    assert {x.dtype.name for x in jax.tree.leaves(optimizer.state.slots)} == {"bfloat16"}


def test_slots_have_their_parameters_metadata():
    with jax.set_mesh(jax.make_mesh((8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))):
        init = nnx.with_partitioning(nnx.initializers.ones, (None, "model"))
        layer = nnx.Linear(2, 8, kernel_init=init, rngs=nnx.Rngs(0))
        optimizer = flax.Optimizer(layer, jk.adam(0.1))
        grads = nnx.grad(lambda layer: jnp.sum(layer(jnp.ones((1, 2)))))(layer)
        nnx.jit(lambda layer, optimizer: optimizer.update(layer, grads))(layer, optimizer)
        momentum = optimizer.opt_state.slots["momentum"]["kernel"]
    assert momentum.get_metadata() == layer.kernel.get_metadata()
    assert momentum[...].sharding == layer.kernel[...].sharding
    assert layer.kernel[...].sharding.shard_shape((2, 8)) == (2, 1)


@pytest.mark.parametrize("kernel", [jk.sgd(0.1), jk.adam(0.1, skip_nonfinite=True)], ids=["rule", "guard"])
def test_a_state_of_another_kernel_is_refused(kernel):
    model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
    optimizer = flax.Optimizer(model, jk.adam(0.1))
    before = optimizer.state
    with pytest.raises(ValueError, match="`state` must be a state of this optimizer's kernel"):
        optimizer.set_state(kernel.init(nnx.as_pure(nnx.state(model, nnx.Param))))
    jax.tree.map(np.testing.assert_array_equal, optimizer.state, before)


def test_numbers_can_be_replaced_and_averages_read():
    kernel, model = (
        jk.sgd(0.1, use_ema=True, ema_momentum=0.5, inject_hyperparams="learning_rate"),
        nnx.Linear(1, 1, rngs=nnx.Rngs(0)),
    )
    optimizer = flax.Optimizer(model, kernel)
    optimizer.set_state(kernel.replaced(optimizer.state, learning_rate=0.5))
    ones = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    optimizer.update(model, ones)
    optimizer.update(model, ones)
    assert model.bias[...].tolist() == [-1.0]
    assert optimizer.averaged(model)["bias"].tolist() == [-0.75]  # of -0.5 and -1


def test_a_transformation_is_refused():
    with pytest.raises(TypeError, match=r"`tx` must be a kernel.*Kernel.from_optax"):
        flax.Optimizer(Net(), optax.adam(0.1))
    with pytest.raises(TypeError, match="`tx` must be a kernel"):
        flax.TrainState.create(apply_fn=None, params={}, tx=optax.adam(0.1))


def test_parameters_that_gradients_overwrite_are_refused():
    class Layer(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(4, dot_general_cls=linen.Fp8DirectDotGeneralOp)(x)

    params = Layer().init(jax.random.key(0), jnp.ones((4, 4)))
    with pytest.raises(ValueError, match=r"`params` must not hold.*keys \['_overwrite_with_gradient', 'params'\]"):
        flax.TrainState.create(apply_fn=None, params=params, tx=ADAM)
    state = train_state.TrainState.create(apply_fn=None, params=params, tx=ADAM)  # which the message names
    state = state.apply_gradients(grads=params)
    assert int(state.opt_state.count) == 1


class Weights(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.ones((32, 16), jnp.bfloat16))


STEPS = 1000
MASTERS = {
    "float32": ({"master_weights": "float32"}, 0.0),
    "bf16+16": ({"master_weights": "bf16+16"}, 0.0),
    "bf16+8": ({"master_weights": "bf16+8"}, 5e-3),
    "stochastic": ({"rounding": "stochastic"}, 5e-3),
}


def thousand_small_steps(make, settings):
    """Weights of 1.0, and a thousand updates of -1e-3, each less than half of bfloat16's last place there."""
    model = Weights()
    optimizer = make(model, jk.sgd(1e-3, **settings))
    ones = jax.tree.map(jnp.ones_like, nnx.state(model))

    @nnx.jit
    def run(model, optimizer):
        nnx.fori_loop(0, STEPS, lambda _, both: (both[1].update(both[0], ones), both)[1], (model, optimizer))

    run(model, optimizer)
    assert int(optimizer.step[...]) == STEPS and model.w[...].dtype == jnp.bfloat16
    return np.asarray(model.w[...], np.float32)


@pytest.mark.parametrize("name", MASTERS)
def test_small_updates_reach_the_model(name):
    settings, tolerance = MASTERS[name]
    reached = thousand_small_steps(flax.Optimizer, settings)
    if name == "stochastic":
        assert len(np.unique(reached)) > 1
        reached = reached.mean(keepdims=True)  # right on average
    exact = np.float32(1)
    for _ in range(STEPS):
        exact -= np.float32(1e-3)
    if tolerance:
        assert np.abs(reached).max() <= tolerance
    else:
        np.testing.assert_array_equal(reached, np.float32(jnp.bfloat16(exact)))


def test_and_are_lost_without():
    def plain(model, kernel):
        return nnx.Optimizer(model, kernel, wrt=nnx.Param)

    assert (thousand_small_steps(flax.Optimizer, {}) == 1).all()
    assert (thousand_small_steps(plain, {}) == 1).all()


# ---------------------------------------------------------------------------------------------------------------------
# linen


def linen_run(cls, tx):
    module = linen.Dense(2)
    state = cls.create(apply_fn=module.apply, params=module.init(jax.random.key(0), X), tx=tx)

    @jax.jit
    def step(state):
        loss, grads = jax.value_and_grad(lambda p: jnp.mean((state.apply_fn(p, X) - 1) ** 2))(state.params)
        return state.apply_gradients(grads=grads), loss

    losses = []
    for _ in range(3):
        state, loss = step(state)
        losses.append(float(loss))
    assert int(state.step) == 3
    return losses, state.params


def test_linen():
    wanted = linen_run(train_state.TrainState, optax.adam(0.01))
    near(linen_run(train_state.TrainState, ADAM), wanted)
    near(linen_run(flax.TrainState, ADAM), wanted)


# ---------------------------------------------------------------------------------------------------------------------
# The stateful face over nnx variables


def test_the_stateful_face(expected):
    model = Net()
    optimizer, losses = jk.Adam(0.01, epsilon=1e-8, variant="optax"), []
    for _ in range(3):
        loss, grads = nnx.value_and_grad(loss_fn)(model)
        optimizer.apply_gradients(flax.grads_and_vars(grads, model))
        losses.append(float(loss))
    near((losses, nnx.to_pure_dict(nnx.state(model, nnx.Param))), expected[:2])
    with pytest.raises(TypeError, match="`nnx.grad` for nnx"):  # its reads cannot be seen
        jk.value_and_grad(lambda: loss_fn(model), [model.scale])


@pytest.mark.parametrize("patterns", [["kernel$"], ["second/kernel$"], ["second"], None])
@pytest.mark.parametrize("make", [jk.muon, jk.normuon])
def test_muon_leaves_excluded_layers_of_a_model_to_adam(make, patterns):
    """In `nnx.Optimizer`, whose parameters have the path `second/kernel/value` for JAX."""

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.first, self.second = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

    kernel = make(0.1, exclude_layers=patterns)
    model = Model(nnx.Rngs(0))
    before = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    before = jax.tree.map(jnp.copy, before)
    optimizer = nnx.Optimizer(model, kernel, wrt=nnx.Param)
    optimizer.update(model, nnx.grad(lambda m: jnp.sum(m.second(m.first(jnp.ones((5, 3))))))(model))
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    # A first step of Adam is 0.1 for each element; an orthogonalized matrix has other elements.
    by_adam = {
        f"{layer}/{name}"
        for layer in after
        for name in after[layer]
        if np.allclose(np.abs(after[layer][name] - before[layer][name] * 0.9996), 0.1, rtol=1e-2)
    }
    wanted = {"first/bias", "second/bias"} | {
        f"{layer}/kernel" for layer in after if any(re.search(p, f"{layer}/kernel") for p in patterns or ())
    }
    assert by_adam == wanted
