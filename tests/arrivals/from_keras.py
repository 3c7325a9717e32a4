"""A user of Keras 3: `fit` with a schedule and a callback, saved and loaded; and a loop with `stateless_apply`."""

import jax
import keras
import numpy as np

from jaxopt_keras.interop.keras import AdamW, HistoryCallback
from tests.arrivals.data import FIRST, SECOND, X, Y

ARGUMENTS = {"weight_decay": 0.1, "clipnorm": 0.5, "use_ema": True}


def make():
    model = keras.Sequential([
        keras.layers.Input((8,)), keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(1),
    ])  # fmt: skip
    model.set_weights([FIRST, np.zeros(16), SECOND, np.zeros(1)])
    return model


def fitted(cls, path, callbacks=()):
    model = make()
    model.compile(cls(keras.optimizers.schedules.CosineDecay(1e-2, 32), **ARGUMENTS), loss="mse")
    fit = {"batch_size": 16, "shuffle": False, "verbose": 0, "callbacks": [*callbacks]}
    model.fit(X, Y, epochs=4, **fit)
    model.save(path)
    model = keras.models.load_model(path)
    model.fit(X, Y, epochs=4, **fit)
    return model.get_weights()


def looped(cls):
    model, optimizer = make(), cls(1e-2)
    optimizer.build(model.trainable_variables)

    @jax.jit
    def step(params, state, x, y):
        def loss(params):
            return jax.numpy.mean((model.stateless_call(params, [], x)[0] - y) ** 2)

        return optimizer.stateless_apply(state, jax.grad(loss)(params), params)

    params, state = [v.value for v in model.trainable_variables], [v.value for v in optimizer.variables]
    for _ in range(20):
        params, state = step(params, state, X, Y)
    return params


def main(folder):
    recorder = HistoryCallback(every=4)
    ours = fitted(AdamW, folder / "ours.keras", [recorder])
    assert recorder.history["step"].tolist() == [*range(1, 33, 4)] and recorder.history["learning_rate"][0] > 9e-3
    theirs = fitted(keras.optimizers.AdamW, folder / "theirs.keras")
    return (ours, looped(AdamW)), (theirs, looped(keras.optimizers.AdamW))
