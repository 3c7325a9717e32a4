"""A user of Flax nnx: a module with dropout switched off, optax's place in `nnx.Optimizer`, and our `Optimizer`."""

import jax.numpy as jnp
import optax
from flax import nnx

import jaxopt_keras as jk
from jaxopt_keras.interop.flax import Optimizer
from tests.arrivals.data import FIRST, SECOND, STEPS, X, Y


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first, self.second = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 1, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.first.kernel.set_value(jnp.asarray(FIRST))
        self.second.kernel.set_value(jnp.asarray(SECOND))

    def __call__(self, x):
        return self.second(self.dropout(nnx.tanh(self.first(x))))


@nnx.jit
def train_step(model, optimizer, x, y):
    loss, grads = nnx.value_and_grad(lambda model: jnp.mean((model(x) - y) ** 2))(model)
    optimizer.update(model, grads)
    return loss


def trained(make):
    model = Net(nnx.Rngs(0))
    model.eval()
    optimizer = make(model)
    for _ in range(STEPS):
        train_step(model, optimizer, X, Y)
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def main():
    """The decay leaves biases out: paths are like `first/bias`."""
    kernel = jk.adamw(1e-2, weight_decay=0.1, exclude_from_weight_decay=["bias$"], epsilon=1e-8, variant="optax")
    no_bias = lambda params: nnx.map_state(lambda path, _: path[-1] != "bias", params)
    theirs = optax.adamw(1e-2, weight_decay=0.1, mask=no_bias)
    in_place = trained(lambda model: nnx.Optimizer(model, kernel, wrt=nnx.Param))
    expected = trained(lambda model: nnx.Optimizer(model, theirs, wrt=nnx.Param))
    return (in_place, trained(lambda model: Optimizer(model, kernel))), (expected, expected)
