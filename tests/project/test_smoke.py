"""A smoke of each face with native loops: `make lines` runs it and the engine's laws on every promised line of JAX."""

import pathlib
import re
import tomllib

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest

import jaxopt_keras as jk
from jaxopt_keras.engine.native import unavailable
from jaxopt_keras.engine.native.call import Call
from jaxopt_keras.interop.keras import Adam

pytestmark = pytest.mark.usefixtures("jax_defaults")  # Keras leans on implicit promotion
ROOT = pathlib.Path(__file__).parents[2]
STEPS = 5


def start(rows):
    """Parameters, of other shapes in each test: a program that another test compiled is not lowered again."""
    return {"w": jnp.cos(jnp.arange(rows * 13.0)).reshape(rows, 13), "b": jnp.zeros(13)}


def loss(params):
    return jnp.sum((params["w"] - 0.1) ** 2) + jnp.sum((params["b"] + 0.2) ** 2)


def pure(engine):
    kernel, params = jk.adamw(0.05, global_clipnorm=1.0, engine=engine), start(7)
    state = kernel.init(params)
    for _ in range(STEPS):
        params, state = kernel.step(params, state, jax.grad(loss)(params))
    return params


def pure_in_a_scan(engine):
    kernel, params = jk.lion(0.05, state_dtype="int8", engine=engine), start(8)

    def body(carry, _):
        params, state = carry
        return kernel.step(params, state, jax.grad(loss)(params)), None

    return jax.jit(lambda *carry: jax.lax.scan(body, carry, length=STEPS))(params, kernel.init(params))[0][0]


def pure_in_a_chain(engine):
    chain, params = optax.chain(optax.clip(0.5), jk.sgd(0.05, momentum=0.9, engine=engine)), start(9)

    @jax.jit
    def step(params, state):
        updates, state = chain.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = chain.init(params)
    for _ in range(STEPS):
        params, state = step(params, state)
    return params


def pure_and_packed(engine):
    kernel, params = jk.adam(0.05, use_ema=True, engine=engine), jk.pack(start(10))
    state = kernel.init(params)
    for _ in range(STEPS):
        params, state = kernel.step(params, state, jax.grad(lambda p: loss(p.unpack()))(params))
    return params.unpack()


def stateful(engine):
    variables = {name: jk.Variable(x, name=name) for name, x in start(11).items()}
    optimizer = jk.Lamb(0.05, weight_decay=0.01, engine=engine)
    for _ in range(STEPS):
        grads = jax.grad(loss)({name: v.value for name, v in variables.items()})
        optimizer.apply_gradients([(grads[name], v) for name, v in variables.items()])
    return {name: v.value for name, v in variables.items()}


def keras_fit(engine):
    params = start(12)
    model = keras.Sequential([keras.layers.Input((12,)), keras.layers.Dense(13)])
    model.set_weights([np.asarray(params["w"]), np.asarray(params["b"])])
    model.compile(optimizer=Adam(0.05, engine=engine), loss="mse")
    x = np.random.default_rng(0).normal(size=(8 * STEPS, 12)).astype("float32")
    model.fit(x, np.zeros((len(x), 13), "float32"), batch_size=8, shuffle=False, verbose=0)
    return dict(zip(("w", "b"), model.get_weights(), strict=True))


@pytest.mark.skipif(bool(unavailable()), reason=unavailable())
@pytest.mark.parametrize("face", [pure, pure_in_a_scan, pure_in_a_chain, pure_and_packed, stateful, keras_fit])
def test_a_face_is_native_and_equals_xla(monkeypatch, face):
    loops = []

    def counted(call, *operands, native=Call.native):
        loops.append(call)
        return native(call, *operands)

    monkeypatch.setattr(Call, "native", counted)
    expected = face("xla")
    assert not loops
    found = face("auto")
    assert loops
    assert np.any(expected["b"])  # which was zero
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, rtol=1e-5, atol=1e-6)


def test_every_promised_line_of_jax_is_run():
    promised = next(
        found
        for package in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
        if (found := re.fullmatch(r"jax>=0\.(\d+),<0\.(\d+)", package))
    )
    lines = re.search(r"^LINES := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    assert [line.split("-")[0] for line in lines.split()] == [f"0.{n}" for n in range(*map(int, promised.groups()))]
