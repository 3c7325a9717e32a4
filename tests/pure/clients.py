"""Shared by the tests of other people's JAX programs: two libraries of optimizers with equal numbers, and a problem."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh
from optax import tree_utils

import jaxopt_keras as jk

BETAS = (0.875, 0.9375)  # exact in binary: optax computes 1 - beta in float32


class Library(NamedTuple):
    """The optimizers of a library with equal numbers, and what it calls their slots."""

    adam: Callable[..., Any]
    adamw: Callable[..., Any]
    sgd: Callable[..., Any]
    first: str
    second: str


THEIRS = Library(
    functools.partial(optax.adam, b1=BETAS[0], b2=BETAS[1]),
    functools.partial(optax.adamw, b1=BETAS[0], b2=BETAS[1], weight_decay=0.1),
    functools.partial(optax.sgd, momentum=0.5),
    "mu",
    "nu",
)
SAME = {"beta_1": BETAS[0], "beta_2": BETAS[1], "epsilon": 1e-8, "variant": "optax"}
OURS = Library(
    functools.partial(jk.adam, **SAME),
    functools.partial(jk.adamw, weight_decay=0.1, **SAME),
    functools.partial(jk.sgd, momentum=0.5, variant="optax"),
    "momentum",
    "velocity",
)

slot = tree_utils.tree_get
X = jnp.linspace(-1, 1, 24).reshape(8, 3)
Y = jnp.sin(3 * X[:, :2])
PARAMS = {
    "dense": {"kernel": jnp.linspace(-0.5, 0.5, 24).reshape(3, 8), "bias": jnp.full(8, 0.1, jnp.float32)},
    "out": {"kernel": jnp.linspace(0.4, -0.4, 16).reshape(8, 2)},
}


def loss_of(params, x=X, y=Y):
    hidden = jnp.tanh(x @ params["dense"]["kernel"] + params["dense"]["bias"])
    return jnp.mean((hidden @ params["out"]["kernel"] - y) ** 2)


def near(a, b, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def trained(tx, params=PARAMS, state=None, steps=4, loss=loss_of):
    """Parameters and state after some steps, the plain way."""
    state = tx.init(params) if state is None else state

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def floats(change):
    """A function of a tree that changes its float leaves only."""
    return lambda tree: jax.tree.map(lambda x: change(x) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def mesh() -> Mesh:
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


def alike(program=None, **tolerances):
    """A test that a program returns the same, to rounding, with optax's optimizers and with ours."""
    if program is None:
        return functools.partial(alike, **tolerances)

    def test() -> None:
        near(program(OURS), program(THEIRS), **tolerances)

    test.__name__, test.__doc__ = program.__name__, program.__doc__
    return test
