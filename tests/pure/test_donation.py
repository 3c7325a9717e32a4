"""A step donates only arrays that it alone reads."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxopt_keras as jk
from jaxopt_keras.history import measured_step

KERNELS = {
    "adam": lambda: jk.adam(0.1),
    "partition": lambda: jk.partition({"w": jk.adam(0.1)}),
    "loss_scaled": lambda: jk.loss_scaled(jk.adam(0.1), 1.0),
    "guard": lambda: jk.adam(0.1, skip_nonfinite=True),
    "flat_state": lambda: jk.adam(0.1, flat_state=True),
}
STEPS = {
    "step": lambda kernel, p, s, g: kernel.step(p, s, g)[0],
    "measured": lambda kernel, p, s, g: measured_step(kernel, p, s, g)[0],
}
x = lambda: jnp.array([1.0, 2.0, 3.0])
TRANSFORMATIONS = {
    "grad": lambda f, p: jax.grad(lambda p: jnp.sum(f(p)))(p),
    "value_and_grad": lambda f, p: jax.value_and_grad(lambda p: jnp.sum(f(p)))(p),
    "vjp": lambda f, p: jax.vjp(f, p)[1](p),
    "jvp": lambda f, p: jax.jvp(f, (p,), (p,)),
    "linearize": lambda f, p: jax.linearize(f, p)[1](p),
    "vmap": lambda f, p: jax.vmap(f)(jnp.stack([p, p])),
    "hessian": lambda f, p: jax.hessian(lambda p: jnp.sum(f(p)))(p),
    "remat": lambda f, p: jax.grad(lambda p: jnp.sum(jax.checkpoint(f)(p)))(p),
    "jit": lambda f, p: jax.jit(f)(p),
    "scan": lambda f, p: jax.lax.scan(lambda p, _: (f(p), None), p, None, length=2),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("transformation", TRANSFORMATIONS)
@pytest.mark.parametrize("name", KERNELS)
def test_transformations_leave_their_arguments(name, transformation, step):
    kernel, params, grads = KERNELS[name](), x(), jnp.ones(3)
    state = kernel.init({"w": params})
    before = jax.tree.map(np.array, state)
    f = lambda p: STEPS[step](kernel, {"w": p}, state, {"w": grads})["w"]
    first = TRANSFORMATIONS[transformation](f, params)
    second = TRANSFORMATIONS[transformation](f, params)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert np.array_equal(params, [1, 2, 3])
    jax.tree.map(np.testing.assert_array_equal, state, before)


def test_a_step_is_donated_again_after_a_transformation():
    kernel, params = jk.adam(0.1), x()
    state = kernel.init(params)
    jax.grad(lambda p: jnp.sum(kernel.step(p, state, p)[0]))(params)
    kernel.step(params, state, jnp.ones(3))
    assert params.is_deleted()


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("devices", ["alone", "of_many"])
def test_one_array_twice(name, devices, monkeypatch):
    """Tied parameters, and gradients that are the parameters: as if they were copies."""
    if devices == "alone":
        monkeypatch.setattr(jax, "device_count", lambda: 1)
    kernel, w = KERNELS[name](), x()
    tied, copies = {"w": w, "w2": w}, {"w": x(), "w2": x()}
    grads = jax.tree.map(jnp.ones_like, copies)
    expected, _ = kernel.step(copies, kernel.init(copies), grads)
    found, state = kernel.step(tied, kernel.init(tied), grads)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    own, given = {"w": x()}, {"w": x()}
    expected, _ = kernel.step(own, kernel.init(own), given)
    found, _ = kernel.step(given, kernel.init(given), given)
    np.testing.assert_array_equal(found["w"], expected["w"])


@pytest.mark.parametrize("spec", [P(), P("d")], ids=str)
@pytest.mark.parametrize("alias", [lambda x: x, lambda x: jax.device_put(x, x.sharding)], ids=["same", "put"])
def test_one_array_twice_on_a_mesh(spec: Any, alias: Any):
    """XLA crashes if it is donated one buffer twice on several devices."""
    placed = NamedSharding(jax.make_mesh((8,), ("d",)), spec)
    kernel, w = jk.adamw(0.1), jax.device_put(jnp.ones((8, 4)), placed)
    grads = {"w": jnp.ones((8, 4)), "w2": jnp.ones((8, 4))}
    tied, state = kernel.step({"w": w, "w2": alias(w)}, kernel.init({"w": w, "w2": w}), jax.device_put(grads, placed))
    assert not w.is_deleted()  # nothing was donated
    found, _ = kernel.step(tied, state, {"w": tied["w2"], "w2": alias(tied["w"])})
    np.testing.assert_array_equal(found["w"], found["w2"])


def test_arrays_without_memory_are_not_one_array():
    kernel, params = jk.adamw(0.1), {"a": jnp.zeros((0, 2)), "b": jnp.zeros((0, 2)), "c": x()}
    kernel.step(params, kernel.init(params), jax.tree.map(jnp.ones_like, params))
    assert params["c"].is_deleted()


def test_other_errors_of_the_device_are_raised():
    kernel = jk.sgd(0.1, constraints={"w": lambda p: jax.pure_callback(fails, p, p)})
    params = {"w": x()}
    with pytest.raises(jax.errors.JaxRuntimeError, match="no luck"):
        jax.block_until_ready(kernel.step(params, kernel.init(params), params))


def fails(p):
    raise ValueError("no luck")
