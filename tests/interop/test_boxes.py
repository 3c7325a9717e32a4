"""Parameters in boxes of Flax: patterns, masks, specs and checkpoints see the path that a user writes."""

import re
import subprocess
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax.sharding import AxisType, PartitionSpec

import jaxopt_keras as jk
from jaxopt_keras import checkpoint
from jaxopt_keras.history import measure
from jaxopt_keras.language.paths import leaves_by_path, map_by_path

pytestmark = pytest.mark.usefixtures("jax_defaults")

PLAIN = {"dense": {"kernel": jnp.arange(6.0).reshape(2, 3) / 6, "bias": jnp.ones(3)}, "scale": jnp.ones(())}
GRADS = jax.tree.map(lambda p: p / 2 + 0.25, PLAIN)
PATHS = ["dense/bias", "dense/kernel", "scale"]


def in_state(tree: Any) -> Any:
    return nnx.State(jax.tree.map(nnx.Param, tree))


BOXES = {
    "partitioned": lambda tree: jax.tree.map(lambda x: linen.Partitioned(x, (None,) * jnp.ndim(x)), tree),
    "logical": lambda tree: jax.tree.map(lambda x: linen.LogicallyPartitioned(x, (None,) * jnp.ndim(x)), tree),
    "nnx": in_state,
    "a tree in one box": lambda tree: {"dense": nnx.Param(tree["dense"]), "scale": nnx.Param(tree["scale"])},
    "a box in a box": lambda tree: in_state(BOXES["partitioned"](tree)),
}
every_box = pytest.mark.parametrize("box", BOXES)


def arrays(tree: Any) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def same(a: Any, b: Any) -> None:
    for x, y in zip(arrays(a), arrays(b), strict=True):
        np.testing.assert_array_equal(x, y, strict=True)


KERNELS = {
    "partition": jk.partition({"bias$": jk.frozen(), "kernel$": jk.adam(0.1)}, default=jk.sgd(0.5)),
    "exclusion": jk.adamw(0.1, weight_decay=0.5, exclude_from_weight_decay=["bias$", "^scale$"]),
    "constraints": jk.sgd(0.1, constraints={"kernel$": lambda p: jnp.clip(p, 0, 0.1)}),
    "exclude_layers": jk.muon(0.1, exclude_layers=["kernel$"]),
    "stochastic rounding": jk.sgd(0.1, momentum=0.9, rounding="stochastic", state_dtype="bfloat16"),
}


@every_box
@pytest.mark.parametrize("name", KERNELS)
def test_a_step_in_boxes_equals_one_without(box, name):
    kernel, wrap = KERNELS[name], BOXES[box]
    params, state = kernel.step(wrap(PLAIN), kernel.init(wrap(PLAIN)), wrap(GRADS), donate=False)
    expected = kernel.step(PLAIN, kernel.init(PLAIN), GRADS, donate=False)
    same((params, state.slots), (expected[0], expected[1].slots))
    described, plain = kernel.describe(wrap(PLAIN)), kernel.describe(PLAIN)
    assert [group.paths for group in described.groups] == [group.paths for group in plain.groups]


@every_box
def test_a_mask_may_be_in_boxes_or_not(box):
    mask = {"dense": {"kernel": False, "bias": True}, "scale": True}
    expected = jk.adamw(0.1, weight_decay=0.5, exclude_from_weight_decay=["bias$", "^scale$"])
    same_step = expected.step(PLAIN, expected.init(PLAIN), GRADS, donate=False)[0]
    for given in (mask, BOXES[box](mask), lambda params: jax.tree.map(lambda p: p.ndim < 2, params)):
        kernel = jk.adamw(0.1, weight_decay=0.5, exclude_from_weight_decay=given)
        params = BOXES[box](PLAIN)
        same(kernel.step(params, kernel.init(params), BOXES[box](GRADS), donate=False)[0], same_step)


@every_box
def test_offload(box):
    kernel = jk.adam(0.1, offload={"kernel/velocity$": "pinned_host"})
    kinds = [x.sharding.memory_kind for x in jax.tree.leaves(kernel.init(BOXES[box](PLAIN)).slots)]
    assert kinds == [x.sharding.memory_kind for x in jax.tree.leaves(kernel.init(PLAIN).slots)]
    assert kinds.count("pinned_host") == 1


def test_offload_sees_the_name_of_a_quantized_slot():
    params = {"w": jnp.ones((64, 256))}
    state = jk.lion(state_dtype="int8", offload={"^w/momentum$": "pinned_host"}).init(params)
    assert {x.sharding.memory_kind for x in jax.tree.leaves(state.slots)} == {"pinned_host"}


@every_box
def test_zero1_finds_the_specs(box):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    specs = {"w": PartitionSpec(None, "model")}
    kernel = jk.sharding.zero1(jk.sgd(0.1, momentum=0.9), mesh, "data", specs)
    wrap = (lambda x: x) if box == "a tree in one box" else BOXES[box]
    state = kernel.init(wrap({"w": jnp.ones((4, 2))}))
    assert jax.tree.leaves(state.slots)[0].sharding.spec == PartitionSpec("data", "model")


@every_box
def test_measures_and_packed_parts(box):
    wrap = BOXES[box]
    groups = {"biases": "bias$"}
    same(measure(wrap(PLAIN), wrap(GRADS), wrap(GRADS), groups=groups), measure(PLAIN, GRADS, GRADS, groups=groups))
    assert [part.path for part in jk.pack(wrap(PLAIN)).parts] == PATHS


@every_box
def test_errors_name_the_path(box):
    wrap, kernel = BOXES[box], jk.sgd(0.1)
    bad = {"dense": GRADS["dense"] | {"bias": jnp.ones(7)}, "scale": jnp.ones(())}
    with pytest.raises(ValueError, match="The gradient of `dense/bias` must"):
        kernel.step(wrap(PLAIN), kernel.init(wrap(PLAIN)), wrap(bad))


@every_box
@pytest.mark.parametrize("name", ["adam", "packed", "partition", "optax"])
def test_checkpoints_have_the_plain_names_and_old_ones_can_be_read(box, name, tmp_path):
    wrap = BOXES[box]
    kernel = KERNELS.get(name, jk.Kernel.from_optax(optax.adam(0.1)) if name == "optax" else jk.adam(0.1))
    pack = jk.pack if name == "packed" else lambda x: x
    params, state = kernel.step(pack(wrap(PLAIN)), kernel.init(pack(wrap(PLAIN))), pack(wrap(GRADS)), donate=False)
    saved = checkpoint.to_dict(state)
    assert {*saved} == {*checkpoint.to_dict(kernel.init(PLAIN))}
    same(checkpoint.from_dict(kernel, params, saved), state)
    if box in ("partitioned", "logical", "nnx") and name != "packed":
        former = {re.sub("dense/bias|dense/kernel|scale", r"\g<0>/value", n): x for n, x in saved.items()}
        assert former.keys() != saved.keys()
        same(checkpoint.from_dict(kernel, params, former), state)
    checkpoint.save(tmp_path / "x.safetensors", state, params)
    same(checkpoint.load_params(tmp_path / "x.safetensors", params), params)
    same(checkpoint.load(tmp_path / "x.safetensors", kernel, params), state)


def test_parameters_of_older_files_can_be_read(tmp_path):
    params = BOXES["nnx"](PLAIN)
    kernel = jk.sgd(0.1)
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, kernel.init(params), {"dense": {n: {"value": x} for n, x in PLAIN["dense"].items()},
                                                "scale": {"value": PLAIN["scale"]}})  # fmt: skip
    same(checkpoint.load_params(path, params), params)


class Holder(eqx.Module):
    value: Any


def test_only_boxes_are_left_out():
    """A field or a key of the same name is part of the path."""
    tree = {"a": Holder(1.0), "b": {"value": 2.0}, "c": nnx.Param({"value": 3.0}), "d": linen.Partitioned(4.0, ())}
    assert [path for path, _ in leaves_by_path(tree)] == ["a/value", "b/value", "c/value", "d"]
    assert [path for path, _ in leaves_by_path(nnx.Param(1.0))] == [""]
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    assert [path for path, _ in leaves_by_path(model)] == ["bias", "kernel"]
    assert jax.tree.leaves(map_by_path(lambda path, x: path, tree)) == ["a/value", "b/value", "c/value", "d"]


def test_flax_own_optimizer_sees_the_same_paths_at_init_and_later():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    before = np.asarray(model.bias[...])
    optimizer = nnx.Optimizer(model, jk.partition({"bias$": jk.frozen()}, default=jk.adam(0.1)), wrt=nnx.Param)
    optimizer.update(model, nnx.grad(lambda model: jnp.sum(model(jnp.ones((1, 2)))))(model))
    np.testing.assert_array_equal(np.asarray(model.bias[...]), before)


def test_flax_is_not_imported():
    code = "import sys, jaxopt_keras as jk, numpy as np; jk.sgd().init({'w': np.ones(2)}); print('flax' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
