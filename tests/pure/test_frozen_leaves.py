"""Leaves that are neither floats nor complex numbers are passed over: no slots, no updates, and no effect on others."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_keras as jk
from jaxopt_keras import checkpoint
from jaxopt_keras.history import measure, measured_step

pytestmark = pytest.mark.usefixtures("jax_defaults")  # optax relies on promotion

FLOATS = {
    "a": {"kernel": jnp.arange(6.0).reshape(2, 3) / 6, "bias": jnp.ones(3)},
    "z": [jnp.ones((4, 2), jnp.bfloat16), None],
}
OTHERS = {
    "a": {"count": jnp.array(3), "flag": jnp.array([True, False])},
    "m": jnp.arange(4, dtype=jnp.uint8),
    "z": [None, jax.random.key(7)],
}
ABSENT = {"a": {"count": None, "flag": None}, "m": None, "z": [None, None]}


def merged(floats: Any, others: Any) -> Any:
    (w, _), (_, key) = floats["z"], others["z"]
    return {"a": floats["a"] | others["a"], "m": others["m"], "z": [w, key]}


def without(tree: Any) -> Any:
    """The tree of floats, with None in the other places."""
    a = {"kernel": tree["a"]["kernel"], "bias": tree["a"]["bias"]}
    return merged({"a": a, "z": [tree["z"][0], None]}, ABSENT)


PARAMS = merged(FLOATS, OTHERS)
float0 = lambda x: None if x is None else np.zeros(x.shape, jax.dtypes.float0)
GRADS = {
    "None": ABSENT,
    "float0": jax.tree.map(float0, OTHERS),
    "zeros": {"a": jax.tree.map(jnp.zeros_like, OTHERS["a"]), "m": jnp.zeros(4, jnp.uint8), "z": [None, None]},
}
MESH = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
KERNELS = {
    "adamw": jk.adamw(0.1, exclude_from_weight_decay=["bias$|count"]),
    "masters, int8": jk.adamw(0.1, master_weights="bf16+16", state_dtype="int8"),
    "stochastic": jk.sgd(0.1, momentum=0.9, rounding="stochastic"),
    "muon": jk.muon(0.1, global_clipnorm=0.5),
    "schedule free": jk.schedule_free_adamw(0.1),
    "averages, accumulation": jk.sgd(0.1, use_ema=True, gradient_accumulation_steps=2),
    "guards": jk.lamb(0.1, skip_nonfinite=True, skip_spikes=5.0),
    "offload": jk.adam(0.1, offload="pinned_host"),
    "flat": jk.adam(0.1, flat_state=True),
    "xla": jk.nadam(0.1, engine="xla"),
    "constraints": jk.sgd(0.1, constraints={"kernel|count": lambda p: p / 2}),
    "optax": jk.Kernel.from_optax(optax.adam(0.1)),
    "groups": jk.partition({"bias$": jk.frozen(), "kernel|^m": jk.sgd(0.1)}, default=jk.adam(0.1, skip_nonfinite=True)),
    "loss scale": jk.loss_scaled(jk.adam(0.1), initial_scale=2.0),
    "zero1": jk.sharding.zero1(jk.adam(0.1), MESH),
    "injected": jk.adam(0.1, inject_hyperparams=True),
}
every_kernel = pytest.mark.parametrize("name", KERNELS)
every_gradient = pytest.mark.parametrize("kind", GRADS)


def same(a: Any, b: Any) -> None:
    data = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(*map(np.asarray, map(data, (x, y))), strict=True), a, b)


def placed(name: str, tree: Any) -> Any:
    """The tree as a kernel needs it: replicated over the mesh for ZeRO-1."""
    put = lambda x: jax.device_put(x, NamedSharding(MESH, PartitionSpec()))
    return jax.tree.map(put, tree) if name == "zero1" else tree


def grads_of(kind: str) -> Any:
    floats = jax.tree.map(lambda p: p / 2 + 0.25, without(PARAMS))
    return merged({"a": {n: floats["a"][n] for n in ("kernel", "bias")}, "z": [floats["z"][0], None]}, GRADS[kind])


@every_kernel
@every_gradient
def test_the_floats_move_as_they_do_alone(name, kind):
    kernel, grads = KERNELS[name], grads_of(kind)
    params, alone = placed(name, PARAMS), placed(name, without(PARAMS))
    state, expected = kernel.init(params), kernel.init(alone)
    assert jax.tree.structure(jax.tree.leaves(state)) == jax.tree.structure(jax.tree.leaves(expected))
    for i in range(3):
        donate = i == 1  # `OTHERS` must stay usable
        before = jax.tree.map(jnp.copy, params)
        params, state = kernel.step(before if donate else params, state, grads, donate=donate)
        alone, expected = kernel.step(alone, expected, without(grads), donate=False)
    same(without(params), alone)
    same(jax.tree.leaves(state), jax.tree.leaves(expected))
    for path in (("a", "count"), ("a", "flag")):
        same(params[path[0]][path[1]], OTHERS[path[0]][path[1]])
    same((params["m"], params["z"][1]), (OTHERS["m"], OTHERS["z"][1]))
    averaged = kernel.averaged(params, state)
    same(without(averaged), kernel.averaged(alone, expected))
    same((averaged["m"], averaged["z"][1]), (OTHERS["m"], OTHERS["z"][1]))


@every_kernel
@every_gradient
def test_updates(name, kind):
    kernel, grads, params = KERNELS[name], grads_of(kind), placed(name, PARAMS)
    updates, state = kernel.update(grads, kernel.init(params), params)
    alone = placed(name, without(PARAMS))
    same(without(updates), kernel.update(without(grads), kernel.init(alone), alone)[0])
    assert jax.tree.structure(state) == jax.tree.structure(kernel.init(params))
    others = [updates["a"]["count"], updates["a"]["flag"], updates["m"]]
    if kind == "None":
        assert others == [None] * 3
    else:
        keyless = lambda tree: tree | {"z": tree["z"][:1]}
        applied = optax.apply_updates(keyless(params), keyless(updates))
        same((applied["a"]["count"], applied["a"]["flag"], applied["m"]), (*OTHERS["a"].values(), OTHERS["m"]))
    assert updates["z"][1] is None


@every_kernel
def test_plans_and_checkpoints(name, tmp_path):
    kernel, params = KERNELS[name], placed(name, PARAMS)
    plan = kernel.describe(params)
    frozen = {path for group in plan.groups if "frozen" in group.kind.rule for path in group.paths}
    assert frozen >= {"a/count", "a/flag", "m", "z/1"} and plan.elements == 6 + 3 + 8 + 1 + 2 + 4 + 1
    assert plan.bytes == kernel.describe(placed(name, without(PARAMS))).bytes
    _, state = kernel.step(params, kernel.init(params), grads_of("None"), donate=False)
    saved = checkpoint.to_dict(state)
    assert not any("count" in n or "flag" in n for n in saved if n.startswith("slots/"))
    same(checkpoint.from_dict(kernel, params, saved), state)


@pytest.mark.parametrize("name", ["adamw", "muon", "averages, accumulation"])
def test_packed(name):
    kernel, params = KERNELS[name], jk.pack(PARAMS)
    same(params.unpack(), PARAMS)
    for grads in (params.like(grads_of("None")), grads_of("None")):
        new, state = kernel.step(params, kernel.init(params), grads, donate=False)
        alone = without(PARAMS)
        expected, _ = kernel.step(alone, kernel.init(alone), without(grads_of("None")), donate=False)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), without(new.unpack()), expected)
        same((new.unpack()["m"], new.unpack()["z"][1]), (OTHERS["m"], OTHERS["z"][1]))


def test_the_gradients_of_jax_fit():
    params = {"w": jnp.ones(3), "n": jnp.array(2)}
    grads = jax.grad(lambda p: jnp.sum(p["w"] * p["n"]), allow_int=True)(params)
    kernel = jk.sgd(0.5)
    new, _ = kernel.step(params, kernel.init(params), grads, donate=False)
    assert new["w"].tolist() == [0.0, 0.0, 0.0] and new["n"] == 2
    updates, _ = kernel.update(grads, kernel.init(params))
    assert updates["n"] is None and updates["w"].tolist() == [-1.0] * 3


def test_measures():
    kernel = KERNELS["adamw"]
    params, state = PARAMS, kernel.init(PARAMS)
    alone = without(PARAMS)
    *_, found = measured_step(kernel, params, state, grads_of("float0"), donate=False)
    *_, expected = measured_step(kernel, alone, kernel.init(alone), without(grads_of("None")), donate=False)
    same(found, expected)
    same(measure(params, params, grads_of("None")), measure(alone, alone, without(grads_of("None"))))


def test_inside_transformations():
    kernel = KERNELS["adamw"]

    def body(carry: Any, _: Any) -> Any:
        return kernel.step(*carry, grads_of("None")), None

    (params, _), _ = jax.lax.scan(body, (PARAMS, kernel.init(PARAMS)), length=2)
    same((params["m"], params["z"][1]), (OTHERS["m"], OTHERS["z"][1]))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), PARAMS)
    assert jax.tree.structure(kernel.init(shapes)) == jax.tree.structure(kernel.init(PARAMS))


def test_what_is_refused():
    kernel = jk.sgd(0.1)
    params = {"w": jnp.ones(3), "n": jnp.arange(2)}
    with pytest.raises(TypeError, match="A parameter of dtype int32 is not updated. Received: a gradient of dtype fl"):
        kernel.step(params, kernel.init(params), {"w": jnp.ones(3), "n": jnp.ones(2)}, donate=False)
    for none in ({"n": jnp.arange(3)}, {"n": jnp.arange(3), "flag": jnp.array(True)}):
        with pytest.raises(TypeError, match="there is none. Received: `"):
            kernel.init(none)
    with pytest.raises(TypeError, match="`params` must be a pytree of arrays. Received: 'text' at `t`"):
        kernel.init({"w": jnp.ones(3), "t": "text"})


def test_variables_of_the_stateful_face():
    w, n = jk.Variable([1.0, 2.0], name="w"), jk.Variable([3], name="n")
    with pytest.raises(TypeError, match="`n` of dtype int32. Set `trainable=False`"):
        jk.SGD(0.5).build([w, n])
    n.trainable = False
    optimizer = jk.Adam(0.5)
    optimizer.minimize(lambda: jnp.sum(w.value) * n.value[0], [w, n])
    assert n.numpy().tolist() == [3] and (w.numpy() != [1, 2]).all()
    assert len(optimizer.variables) == 2 + 2
