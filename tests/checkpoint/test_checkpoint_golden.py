"""Files that earlier code wrote are still read, every array of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras import checkpoint
from jaxopt_keras.checkpoint import files
from jaxopt_keras.packing.trees import Packed
from tests.checkpoint.golden.cases import GOLDEN, KERNELS, OPTIMIZERS, path_of, stateful, trained, trained_stateful

pytestmark = pytest.mark.filterwarnings("error")
every_kernel = pytest.mark.parametrize("name", KERNELS)
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def without_hyper(flat):
    return {n: x for n, x in flat.items() if "hyper/" not in n}


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name, strict=True)


def slot_at(tree, path):
    """The slot of the parameter at `path`; of packed ones, its piece of a buffer."""
    if not isinstance(tree, Packed):
        return functools.reduce(lambda inside, key: inside[key], path, tree)
    mine = next(part for part in tree.parts if part.path == "/".join(path))
    before = [part.size for part in tree.parts[: tree.parts.index(mine)] if part.buffer == mine.buffer]
    return tree.buffers[mine.buffer][sum(before) : sum(before) + mine.size].reshape(mine.shape)


def at(state, name):
    """The array that a file has under `name`, found in the state without the code that names it."""
    kind, *rest = name.split("/")
    if kind == "step":
        return state.count
    if kind == "scalars" and rest[0] == "transformation":
        return at(state.scalars["transformation"][int(rest[1])], "/".join(rest[2:]))
    if kind == "scalars":
        return functools.reduce(lambda inside, key: inside[key], rest, state.scalars)
    assert kind == "slots"
    slots = state.slots.unpack() if isinstance(state.slots, Packed) else state.slots  # with `flat_state`
    slot, _, code = rest[-1].partition(".")
    x = slot_at(slots[slot], rest[:-1])
    return x if not code else x.scales if code == "scales" else x.codes


def plain_optimizers(optimizer):
    inner = getattr(optimizer, "inner_optimizer", None)
    if inner is not None:
        return plain_optimizers(inner)
    return getattr(optimizer, "optimizers", [optimizer])


@every_kernel
def test_every_array_of_a_kernel(name):
    """Nothing is told of the hyperparameters, which are the kernel's own now."""
    make, params = KERNELS[name]
    expected = files.read(path_of(name))
    assert any("hyper/" in n for n in expected)
    state = checkpoint.load(path_of(name), make(), params())
    assert state.hyperparams == {}
    for n, x in without_hyper(expected).items():
        if n != "format":
            np.testing.assert_array_equal(at(state, n), x, err_msg=n, strict=True)
    same(without_hyper(expected), checkpoint.to_dict(state))
    assert jax.tree.structure(state) == jax.tree.structure(make().init(params()))


@every_kernel
def test_what_a_kernel_writes_now(name):
    """The names, shapes and dtypes are the same, and the numbers as near as another compilation allows."""
    expected, now = without_hyper(files.read(path_of(name))), checkpoint.to_dict(trained(name)[1])
    assert {n: (x.shape, x.dtype) for n, x in expected.items()} == {n: (x.shape, x.dtype) for n, x in now.items()}
    for n, x in expected.items():
        if x.dtype == np.float32:
            np.testing.assert_allclose(now[n], x, rtol=1e-5, atol=1e-7, err_msg=n)


@every_kernel
def test_the_saved_hyperparameters(name):
    """Into a kernel that keeps them in its state."""
    if name == "within_optax":  # whose numbers are in the transformation's state, beyond `hyper`
        make, params = KERNELS[name]
        state = checkpoint.load(path_of(name), make(inject_hyperparams=True), params())
        same(files.read(path_of(name)), checkpoint.to_dict(state))
        return
    make, params = KERNELS[name]
    kernel = make(inject_hyperparams=True).replace(learning_rate=0.0625)
    same(files.read(path_of(name)), checkpoint.to_dict(checkpoint.load(path_of(name), kernel, params(), hyper=True)))
    with pytest.warns(UserWarning, match="other numbers, which are not restored"):
        own = checkpoint.to_dict(checkpoint.load(path_of(name), kernel, params()))
    rates = {n: float(x) for n, x in own.items() if n.endswith("learning_rate")}
    assert rates and set(rates.values()) == {0.0625}


@every_optimizer
def test_every_array_of_an_optimizer(name):
    expected, (optimizer, _) = files.read(path_of(name)), stateful(name)
    fresh = checkpoint.to_dict(optimizer)
    for plain in plain_optimizers(optimizer):
        plain.learning_rate = 0.0625
    assert checkpoint.load(path_of(name), optimizer, hyper=True) is None
    found = checkpoint.to_dict(optimizer)
    same(expected, found)
    assert any(np.any(fresh[n] != x) for n, x in found.items() if n.startswith("slots/"))
    now = checkpoint.to_dict(trained_stateful(name))
    assert now.keys() == expected.keys()
    for n, x in expected.items():
        np.testing.assert_allclose(now[n], x, rtol=1e-5, atol=1e-7, err_msg=n)


def test_there_is_a_test_of_each():
    assert {p.name for p in GOLDEN.glob("*.safetensors")} == {
        "adamw_v1.safetensors", *(path_of(name).name for name in [*KERNELS, *OPTIMIZERS])
    }  # fmt: skip


def made():
    params = {"dense": {"kernel": jnp.asarray([[1.0, -2.0], [0.5, 3.0]]), "bias": jnp.zeros(2)}}
    kernel = jk.adamw(0.125, beta_1=0.5, beta_2=0.75, use_ema=True, inject_hyperparams=True)
    state = kernel.init(params)
    for _ in range(2):
        _, state = kernel.step(params, state, params, donate=False)
    return state


def test_the_first_file():
    """Its numbers are known without any code: `made` made it."""
    params = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    names = {
        "format", "step", *(f"hyper/{n}{c}" for n in ("beta_1", "beta_2", "ema_momentum") for c in ("", ".complement")),
        *(f"hyper/{n}" for n in ("learning_rate", "epsilon", "weight_decay")),
        *(f"slots/dense/{p}/{s}" for p in ("kernel", "bias") for s in ("momentum", "velocity", "average")),
    }  # fmt: skip
    path = path_of("adamw")
    assert files.read(path).keys() == names
    state = checkpoint.load(path, jk.adamw(use_ema=True, inject_hyperparams=True), params, hyper=True)
    assert int(state.count) == 2 and float(state.hyperparams["beta_2"].complement) == 0.25
    kernel = {slot: tree["dense"]["kernel"] for slot, tree in state.slots.items()}
    np.testing.assert_array_equal(kernel["momentum"], [[0.75, -1.5], [0.375, 2.25]])
    np.testing.assert_array_equal(kernel["velocity"], [[0.4375, 1.75], [0.109375, 3.9375]])
    np.testing.assert_allclose(kernel["average"], made().slots["average"]["dense"]["kernel"], rtol=1e-6)
    assert checkpoint.to_dict(made()).keys() == names, "a new layout needs a new version, and a golden file"
