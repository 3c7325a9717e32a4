"""Many arrays in one buffer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from tests.laws.cases import PLAIN, SWITCHED, assert_close, assert_same_bits, draw, gradients, types

SHAPES = {"kernel": (4, 3), "bias": (3,), "list": [(), (0, 2), (2, 3, 5)], "half": (5,)}
SOME_OPTIONS = {
    "plain": {},
    "every stage": {"global_clipnorm": 0.5, "use_ema": True, "gradient_accumulation_steps": 2, "weight_decay": 0.1},
    "each by itself": {"clipnorm": 0.3, "weight_decay": 0.1, "exclude_from_weight_decay": "bias"},
    "none decays": {"weight_decay": 0.1, "exclude_from_weight_decay": ""},
    "constrained": {"constraints": {"kernel": jnp.abs}},
}


def test_there_and_back():
    tree = draw(SHAPES, 0)
    packed = jk.pack(tree)
    assert {name: x.shape for name, x in packed.buffers.items()} == {"float32": (46,), "bfloat16": (5,)}
    assert_same_bits(packed.unpack(), tree)
    assert_same_bits(packed.like(tree), packed)
    assert jax.tree.structure(packed) == jax.tree.structure(jk.pack(tree))


# Of each grain, with numbers that are kept once, and with a fallback.
@pytest.mark.parametrize("name", ["Adam", "Lamb", "Adafactor", "Nadam", "ScheduleFreeAdamW", "Muon"])
def test_packed_equals_unpacked(name):
    check(next(case for case in PLAIN if str(case) == f"{name}-keras-plain"), {})


@pytest.mark.parametrize("options", SOME_OPTIONS.values(), ids=SOME_OPTIONS)
def test_whatever_is_around_the_rule(options):
    check(next(case for case in SWITCHED if str(case).startswith("Adam-keras")), options)


def check(case, options):
    kernel, params = case.kernel(**options), draw(SHAPES, 0)
    packed = jk.pack(params)
    state, packed_state = kernel.init(params), kernel.init(packed)
    for g in gradients(4, SHAPES):
        grads = packed.like(g)
        params, state = kernel.step(params, state, g, donate=False)
        updates, _ = kernel.update(grads, packed_state, packed)
        before, kind = packed, types(packed_state)
        packed, packed_state = kernel.step(packed, packed_state, grads, donate=False)
        assert types(packed_state) == kind
        assert_close(packed.unpack(), params, 4)
        added = jax.tree.map(lambda p, u: (p.astype(u.dtype) + u).astype(p.dtype), before, updates)
        assert_close(added, packed, 2)
    assert_close(kernel.averaged(packed, packed_state).unpack(), kernel.averaged(params, state), 4)


def test_one_buffer_is_one_array_of_the_program():
    packed = jk.pack({f"w{i}": jnp.ones(64) for i in range(100)})
    state = jk.adam().init(packed)
    assert len(jax.tree.leaves(state.slots)) == 2
    assert len(jax.tree.leaves(jk.lamb().init(packed).slots)) == 200  # which needs the norm of each


def test_the_plan_says_what_is_packed_and_why():
    tree = {f"w{i:03}": jnp.ones(64) for i in range(101)}
    packed = jk.pack(dict(list(tree.items())[:3]))
    assert str(jk.adam().describe(packed)).endswith("packed: 3 arrays in float32, updated as buffers")
    assert [len(group.paths) for group in jk.adam().describe(packed).groups] == [1]
    for kernel, why in (
        (jk.lamb(), "the rule needs whole arrays"),
        (jk.adam(clipnorm=1.0), "`clipnorm` clips each array separately"),
        (jk.adam(constraints={"w": jnp.abs}), "there are `constraints`"),
        (jk.adamw(exclude_from_weight_decay="w001"), "some are in `exclude_from_weight_decay`"),
    ):
        plan = kernel.describe(packed)
        assert plan.notes == (f"packed: 3 arrays in float32, unpacked inside the step, since {why}",)
        assert sum(len(group.paths) for group in plan.groups) == 3 and plan.bytes == jk.nbytes(kernel.init(packed))
    assert "101 arrays of 64 elements each: `jaxopt_keras.pack`" in str(jk.adam().describe(tree))
    few, large = dict(list(tree.items())[:100]), {name: jnp.ones(4096) for name in tree}
    assert not (jk.adam().describe(few).notes or jk.adam().describe(large).notes or jk.lamb().describe(tree).notes)


def test_gradients_are_packed():
    params = jk.pack({"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(2)})

    def loss(q):
        tree = q.unpack()
        return jnp.sum(tree["w"] ** 2) + 3 * jnp.sum(tree["b"])

    grads = jax.grad(loss)(params)
    assert isinstance(grads, jk.Packed)
    np.testing.assert_array_equal(grads.unpack()["w"], 2 * np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(grads.unpack()["b"], [3, 3])
    _, tangent = jax.jvp(loss, (params,), (grads,))
    assert float(tangent) == float(sum(jnp.vdot(g, g) for g in jax.tree.leaves(grads)))
    text = str(jax.make_jaxpr(jax.grad(loss))(params))
    assert "pad" not in text and "add_any" not in text  # one concatenation, not a sum of as many buffers as arrays


def test_inside_transformations():
    kernel, params = jk.adam(0.1), jk.pack({"w": jnp.ones(3), "b": jnp.zeros(2)})

    def body(carried, _):
        grads = jax.grad(lambda q: jnp.sum(q.unpack()["w"] ** 2))(carried[0])
        return kernel.step(*carried, grads), None

    (params, _), _ = jax.lax.scan(body, (params, kernel.init(params)), length=50)
    assert float(jnp.max(jnp.abs(params.unpack()["w"]))) < 0.2


def test_gradients_that_are_a_tree():
    params = jk.pack({"w": jnp.ones(3)})
    kernel = jk.sgd(0.5)
    moved, _ = kernel.step(params, kernel.init(params), {"w": jnp.ones(3)}, donate=False)
    np.testing.assert_array_equal(moved.unpack()["w"], 0.5)


def test_what_does_not_fit():
    packed = jk.pack({"w": jnp.ones(3)})
    with pytest.raises(ValueError, match="`tree` must have the structure"):
        packed.like({"v": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"`w` must have the shape \(3,\). Received: \(2,\)"):
        packed.like({"w": jnp.ones(2)})
    with pytest.raises(TypeError, match="`params` must be a pytree of arrays. Received: 'a' at `w`"):
        jk.pack({"w": "a"})
