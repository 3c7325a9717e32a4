"""Common parts of the tests of the stateful face: variables of every kind, and the comparison of whole optimizers."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import nnx

import jaxopt_keras as jk
from jaxopt_keras.optimizers import CLASSES, RULES
from jaxopt_keras.stateful.variable_kinds import handle

KINDS = {
    "ours": lambda x, name: jk.Variable(x, name=name),
    "keras": lambda x, name: keras.Variable(x, name=name, dtype=str(np.asarray(x).dtype)),
    "nnx": lambda x, name: nnx.Param(jnp.array(x)),
    "ref": lambda x, name: jax.new_ref(jnp.array(x)),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_class = pytest.mark.parametrize("name", CLASSES)
in_keras = pytest.mark.parametrize("name", [name for name, rule in RULES.items() if "keras" in rule.variants])


def two(kind: str = "ours", dtype: Any = np.float32) -> list[Any]:
    """A matrix and a vector."""
    make = KINDS[kind]
    return [make(np.arange(6, dtype=dtype).reshape(2, 3) / 6, "kernel"), make(np.ones(3, dtype), "bias")]


def some_grads(i: int = 0) -> list[jax.Array]:
    """Gradients for them, other ones for every `i`."""
    rng = np.random.default_rng(i)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in [(2, 3), (3,)]]


def values(variables: Any) -> list[np.ndarray]:
    """The values of variables of any kind, as copies."""
    return [np.array(handle(v).read()) for v in variables]


def same(a: Any, b: Any) -> None:
    """Two trees of arrays, bit for bit."""
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True), a, b)


def close(a: Any, b: Any, rtol: float = 1e-6, atol: float = 1e-7) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def everything(optimizer: jk.Optimizer, variables: Any) -> dict[str, Any]:
    """All that a step may change, and all that tells what an optimizer knows."""
    leaves = jax.tree_util.tree_leaves_with_path(optimizer._state)
    return {
        "variables": [x.tobytes() for x in values(variables)],
        "state": {jax.tree_util.keystr(path): (np.array(x).tobytes(), x.shape, x.dtype) for path, x in leaves},
        "known": [v.path for v in optimizer.variables],
        "slots": optimizer.get_slot_names(),
        "settings": (optimizer.built, repr(optimizer), optimizer._rule, optimizer._options, optimizer._excluded),
    }


@contextlib.contextmanager
def unchanged(optimizer: jk.Optimizer, *variables: Any) -> Iterator[None]:
    """Check that the body changes neither the optimizer nor `variables`."""
    before = everything(optimizer, variables)
    yield
    assert everything(optimizer, variables) == before


@contextlib.contextmanager
def refused(error: type[Exception], text: str, optimizer: jk.Optimizer, *variables: Any) -> Iterator[None]:
    """Check that the body raises `error` with a message that matches `text`, and changes nothing."""
    with unchanged(optimizer, *variables), pytest.raises(error, match=text):
        yield
