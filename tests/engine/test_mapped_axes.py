"""`axis_name`: gradients are summed over devices once, whether or not `shard_map` has summed them already."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxopt_keras as jk
from jaxopt_keras.history import measured_step

DEVICES = 4
RATE = 0.5
KERNELS = {
    "plain": lambda **options: jk.sgd(RATE, axis_name="data", **options),
    "guard": lambda **options: jk.sgd(RATE, axis_name="data", skip_nonfinite=True, skip_spikes=10.0, **options),
    "accumulation": lambda **options: jk.sgd(RATE, axis_name="data", gradient_accumulation_steps=2, **options),
    "partition": lambda **options: jk.partition({"w": jk.sgd(RATE, axis_name="data", **options)}, default=jk.sgd(9.0)),
    "loss_scaled": lambda **options: jk.loss_scaled(jk.sgd(RATE, axis_name="data", **options), 1.0),
    "two axes": lambda **options: jk.sgd(RATE, axis_name=("data", "other"), **options),
}


def updated(p, kernel, state, g):
    deltas, state = kernel.update(g, state, p)
    return jax.tree.map(jnp.add, p, deltas), state


OPTIMIZER = jk.SGD(RATE, axis_name="data")
OPTIMIZER.build([jk.Variable(np.zeros(2), name="w")])


def applied(p, kernel, state, g):
    return {"w": OPTIMIZER.stateless_apply([v.value for v in OPTIMIZER.variables], [g["w"]], [p["w"]])[0][0]}, state


CALLS = {
    "step": lambda p, kernel, state, g: kernel.step(p, state, g),
    "update": updated,
    "measured": lambda p, kernel, state, g: measured_step(kernel, p, state, g)[:2],
    "stateless_apply": applied,
}


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", KERNELS)
def test_gradients_of_replicated_parameters_are_summed_once(name, call, check_vma):
    if call == "stateless_apply" and name != "plain":
        pytest.skip("the stateful face has one kernel here")
    mesh = jax.make_mesh((DEVICES, 2), ("data", "other"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    kernel, params = KERNELS[name](), {"w": jnp.zeros(2)}
    batch = np.arange(DEVICES * 2 * 2.0, dtype=np.float32).reshape(DEVICES * 2, 2)

    def step(p, x):
        g = jax.grad(lambda p: jnp.sum(x @ p["w"]))(p)
        state = kernel.init(p)
        for _ in range(2 if name == "accumulation" else 1):
            p, state = CALLS[call](p, kernel, state, g)
        return p

    axes = PartitionSpec(("data", "other")) if name == "two axes" else PartitionSpec("data")
    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=(PartitionSpec(), axes), out_specs=PartitionSpec(), check_vma=check_vma
    )
    x = jax.device_put(batch, NamedSharding(mesh, axes))
    np.testing.assert_allclose(jax.jit(mapped)(params, x)["w"], -RATE * batch.sum(0))


@pytest.mark.parametrize("check_vma", [True, False])
def test_gradients_that_vary_are_summed(check_vma):
    """A loss of each device's own copy of the parameters: `pvary` makes the copies differ, for JAX."""
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    kernel, params = jk.sgd(RATE, axis_name="data"), jnp.zeros(2)
    batch = np.arange(DEVICES * 2.0, dtype=np.float32).reshape(DEVICES, 2)

    def step(p, x):
        g = jax.grad(lambda p: jnp.sum(x @ p))(jax.lax.pcast(p, "data", to="varying") if check_vma else p)
        return kernel.step(p, kernel.init(p), g)[0]

    specs = PartitionSpec(), PartitionSpec("data")
    mapped = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=check_vma)
    np.testing.assert_allclose(jax.jit(mapped)(params, batch), -RATE * batch.sum(0))
