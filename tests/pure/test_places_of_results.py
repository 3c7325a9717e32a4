"""On a mesh a step leaves parameters and state where they are: on the same devices, in the same shards and memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_keras as jk
from jaxopt_keras import history
from jaxopt_keras.optimizers import FUNCTIONS, MODIFIERS, MORE_FUNCTIONS

pytestmark = pytest.mark.filterwarnings("ignore:`flat_state` is for")  # it is slow there, and right

SHAPES = {"kernel": (64, 64), "bias": (64,)}
SPECS = {"kernel": PartitionSpec("data"), "bias": PartitionSpec()}
NAMES = [rule.__module__.rsplit(".", 1)[-1] for rule in MODIFIERS.values()]
KERNELS = {name: make for name, make in (FUNCTIONS | MORE_FUNCTIONS).items() if name not in NAMES}
KERNELS = {name: make for name, make in KERNELS.items() if not make().program.core.needs_function}
OF_LOSSES = ("momo", "momo_adam", "polyak_sgd")
KERNELS |= {
    "flat state": lambda: jk.adamw(flat_state=True), "int8 slots": lambda: jk.adamw(state_dtype="int8"),
    "guard": lambda: jk.adamw(skip_nonfinite=True), "partition": lambda: jk.partition({"bias": jk.sgd()}, jk.shampoo()),
}  # fmt: skip


def trees(kernel):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    numbers = {name: np.random.default_rng(0).normal(size=shape).astype("f4") for name, shape in SHAPES.items()}
    params, grads = ({n: jax.device_put(x, NamedSharding(mesh, SPECS[n])) for n, x in numbers.items()} for _ in "ab")
    return params, kernel.init(params), grads


def places(tree):
    """Of arrays; numbers start on one device, and are on all of them after a step."""
    where = lambda x: (x.sharding.device_set, x.sharding.shard_shape(x.shape)) if x.ndim else None
    return jax.tree.map(where, tree)


def memory(tree):
    large = [x for x in jax.tree.leaves(tree) if x.size > 1]
    return {shard.data.unsafe_buffer_pointer() for x in large for shard in x.addressable_shards}


@pytest.mark.parametrize("name", KERNELS)
def test_a_step_keeps_places_and_memory(name):
    kernel = KERNELS[name]()
    params, state, grads = trees(kernel)
    before, extra = places((params, state)), {"value": jnp.ones(())} if name in OF_LOSSES else {}
    params, state = kernel.step(params, state, grads, **extra)
    held = memory((params, state))
    for _ in range(2):
        assert places((params, state)) == before
        params, state = kernel.step(params, state, grads, **extra)
    assert memory((params, state)) == held


@pytest.mark.parametrize("name", ["flat state", "shampoo"])
def test_other_calls_keep_places(name):
    kernel = KERNELS[name]()
    params, state, grads = trees(kernel)
    before = places((params, state))
    _, moved = kernel.update(grads, state, params)
    assert places(moved) == before[1]
    *both, _ = history.measured_step(kernel, params, state, grads)
    assert places(tuple(both)) == before
    again = jax.tree.map(jnp.copy, both)
    assert places(kernel.step(*again, grads, donate=False)) == before


def test_the_stateful_face_keeps_places():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    w = jk.Variable(jax.device_put(np.ones((64, 64), "f4"), NamedSharding(mesh, PartitionSpec("data"))))
    optimizer = jk.Shampoo(0.1)
    optimizer.build([w])
    before = places([w.value, *(v.value for v in optimizer.variables)])
    for _ in range(2):
        optimizer.apply([w.value * 0 + 1.0], [w])
    assert places([w.value, *(v.value for v in optimizer.variables)]) == before


def test_a_report_of_a_step_places_results_as_the_step_does():
    kernel = KERNELS["shampoo"]()
    arguments = trees(kernel)
    found = jk.sharding.report(kernel.step, *arguments, donate=(0, 1))
    held = sum(x.per_device for x in found.shares if x.name in ("params", "state"))
    assert next(x for x in found.shares if x.name == "result").per_device == held
