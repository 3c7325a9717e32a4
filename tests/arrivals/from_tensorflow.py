"""A user of TF 2: a class of an optimizer with slots and hyperparameters, a model of variables, a loop over batches."""

import numpy as np

import jaxopt_keras as jk
import jaxopt_keras.interop.tensorflow as tf
from tests.arrivals.data import FIRST, SECOND, STEPS, X, Y


class HeavyBall(tf.keras.optimizers.legacy.Optimizer):
    def __init__(self, learning_rate=0.01, momentum=0.9, name="HeavyBall", **kwargs):
        super().__init__(name, **kwargs)
        self._set_hyper("learning_rate", learning_rate)
        self._set_hyper("momentum", momentum)

    def _create_slots(self, var_list):
        for var in var_list:
            self.add_slot(var, "m")

    def _resource_apply_dense(self, grad, var):
        rate = self._decayed_lr(var.dtype.base_dtype)
        m = self.get_slot(var, "m")
        m.assign(m * self._get_hyper("momentum") + grad)
        var.assign_sub(rate * m)

    def get_config(self):
        return {**super().get_config(), "learning_rate": 0.01, "momentum": 0.9}


class Model:
    def __init__(self):
        self.first, self.second = tf.Variable(FIRST), tf.Variable(SECOND)
        self.trainable_variables = [self.first, self.second]

    def loss(self, x, y):
        return tf.reduce_mean(tf.square(tf.tanh(x @ self.first) @ self.second - y))


def theirs():
    """Return the same in NumPy, in float64."""
    first, second = FIRST.astype(np.float64), SECOND.astype(np.float64)
    m, n = np.zeros_like(first), np.zeros_like(second)
    for _ in range(STEPS):
        hidden = np.tanh(X @ first)
        error = 2 * (hidden @ second - Y) / len(X)
        m, n = 0.9 * m + X.T @ (error @ second.T * (1 - hidden**2)), 0.9 * n + hidden.T @ error
        first, second = first - 0.05 * m, second - 0.05 * n
    return first, second


def main():
    model, optimizer = Model(), HeavyBall(0.05)
    for i in range(STEPS):
        if i == STEPS // 2:  # a checkpoint of lists of arrays, as in TF 2
            kept, optimizer = optimizer.get_weights(), HeavyBall(0.05)
            optimizer.build(model.trainable_variables)
            optimizer.set_weights(kept)
        loss, grads = jk.value_and_grad(model.loss, model.trainable_variables, X, Y)
        optimizer.apply_gradients(zip(grads, model.trainable_variables, strict=True))
    assert int(optimizer.iterations) == STEPS and optimizer.get_slot(model.first, "m").shape == (8, 16)
    return [v.numpy() for v in model.trainable_variables], theirs()
